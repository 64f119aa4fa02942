"use strict";
// The page of `tdenoise-pipeline watch`: the newest frame, what it tells, and what to do with each recording.

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const state = { told: null, shown: 0, wanted: 0, refused: null };
const AGAIN_MS = 1500; // before a connection that broke is tried again

// ---- asking and telling ----------------------------------------------------------------------------------------

async function ask(name, options = {}) {
  const answer = await fetch(name, { ...options, headers: { "X-Token": token, "Content-Type": "application/json" } });
  if (!answer.ok) {
    const error = new Error(await answer.text());
    error.status = answer.status;
    throw error;
  }
  return answer;
}

async function tell(name, document) {
  try {
    await ask(name, { method: "POST", body: JSON.stringify(document) });
    state.refused = null;
  } catch (error) {
    state.refused = error instanceof TypeError ? "This was not kept: the program does not answer." : error.message;
  }
  showMessage();
}

// Server-sent events, read by fetch: an EventSource would have to put the token into an address.
async function listen() {
  const answer = await ask("events"), reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) show(JSON.parse(part.slice(6)));
    if (state.told && state.told.ended) return;
  }
}

async function stay() {
  for (;;) {
    try {
      await listen();
      state.lost = null;
    } catch (error) {
      state.lost = error.status === 403 ? error.message : null;
      if (state.lost) return showMessage();
    }
    state.lost = "The program that serves this page has ended. Start 'tdenoise-pipeline watch' again, and open the address that it prints.";
    showMessage();
    if (state.told && state.told.ended) return;
    await new Promise((done) => setTimeout(done, AGAIN_MS));
  }
}

// ---- showing ---------------------------------------------------------------------------------------------------

function show(told) {
  state.told = told;
  state.lost = null;
  showMessage();
  showList();
  $("newest").hidden = told.chosen === null;
  if (told.look && told.look.number !== state.wanted) showLook(told.look);
}

function showMessage() {
  const told = state.told || {};
  const lines = [state.lost, state.refused, ...(told.problems || []), told.why].filter(Boolean);
  $("message").textContent = lines.join(" ");
  $("message").hidden = !lines.length;
}

async function picture(layer, number) {
  const answer = await ask(`picture?layer=${layer}&number=${number}`);
  const [rows, columns] = answer.headers.get("X-Shape").split(" ").map(Number);
  const grey = new Uint8Array(await answer.arrayBuffer()), image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < grey.length; i++) pixels[i] = 0xff000000 | (grey[i] * 0x010101);
  return image;
}

function draw(canvas, image) {
  canvas.width = image ? image.width : 1;
  canvas.height = image ? image.height : 1;
  if (image) canvas.getContext("2d").putImageData(image, 0, 0);
}

async function showLook(look) {
  state.wanted = look.number;
  try {
    const layers = look.problem === null ? ["raw", "denoised"] : ["raw"];
    const images = await Promise.all(layers.map((layer) => picture(layer, look.number)));
    if (look.number < state.shown) return;
    state.shown = look.number;
    draw($("raw"), images[0]);
    draw($("denoised"), images[1]);
  } catch (error) {
    if (error.status !== 410 && !(error instanceof TypeError)) throw error; // 410: there is a newer one already
    if (error.status !== 410) state.wanted = 0; // asked for again with the next state
    return;
  }
  showFigures(look);
}

const number = (value, digits = 3) => Number(value.toPrecision(digits)).toString();
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10 < 4 ? n % 10 : 0]}`;

function showFigures(look) {
  const f = look.figures;
  $("title").textContent = look.recording;
  const [height, width] = look.shape, [rows, columns] = look.size;
  const part = rows < height || columns < width ? `, the middle ${rows} × ${columns} of ${height} × ${width} pixels` : "";
  state.last = look.finished ? `Frame ${look.frame}${part}, the last one.` : null;
  state.behind = `Frame ${look.frame}${part}. ${look.delay_s.toFixed(1)} s behind when it was shown, `;
  state.skipped = (look.every > 1 ? ` Showing every ${ordinal(look.every)} frame.` : "") + (look.problem ? ` ${look.problem}` : "");
  state.arrived = performance.now();
  showBehind();
  $("dose").textContent = f.mean === null ? "not known (a pixel has no value)" : f.dose === null ? `${number(f.mean)} counts/px/frame (counts per electron are not known)`
    : `${number(f.dose)} e/px/frame` + (f.dose_per_square_angstrom === null ? "" : `, ${number(f.dose_per_square_angstrom)} e/Å² per frame`);
  $("brightness").textContent = f.brightness === null ? "not known" : `${(100 * f.brightness).toFixed(1)} % of the frames before`;
  $("fano").textContent = f.fano === null ? "not measured yet"
    : number(f.fano) + (f.fano_error === null ? "" : ` ± ${number(f.fano_error, 1)}`) + (Math.abs(f.fano - 1) < 0.05 ? ": counts electrons" : "");
  $("drift").textContent = f.drift === null ? "does not show" : f.drift < 0.01 ? "less than 0.01 px/frame" : `${number(f.drift, 2)} px/frame`;
  $("event").textContent = f.event + (f.advice ? ` ${f.advice}` : "");
}

// What stays on the page grows old.
function showBehind() {
  if (state.behind) $("behind").textContent = state.last || `${state.behind}${((performance.now() - state.arrived) / 1000).toFixed(0)} s ago.${state.skipped}`;
}

// ---- the list --------------------------------------------------------------------------------------------------

const WORDS = {
  new: "begins, or is written in place", growing: "grows", finished: "finished", gone: "not in the folder any more",
};
const RUN = {
  submitting: "its run is being queued", refused: "its run was refused", pending: "its run is queued", running: "its run is under way",
  done: "its run is done", failed: "its run failed", interrupted: "its run was interrupted", unknown: "no answer about its run",
};
const rows = new Map();

function made(kind, className, parent) {
  const element = document.createElement(kind);
  element.className = className;
  if (kind === "button") element.type = "button";
  parent.append(element);
  return element;
}

function row(id) {
  if (!rows.has(id)) {
    const li = document.createElement("li");
    const first = made("div", "", li), name = made("button", "name", first), told = made("div", "state", first);
    const decide = made("div", "decide", li), accept = made("button", "accept", decide), reject = made("button", "reject", decide);
    const note = made("input", "note", li);
    li.dataset.id = id;
    accept.textContent = "Accept";
    reject.textContent = "Reject";
    note.placeholder = "Note";
    note.maxLength = 4000;
    name.addEventListener("click", () => tell("show", { id }));
    for (const [button, word] of [[accept, "accepted"], [reject, "rejected"]]) {
      button.addEventListener("click", () => {
        const again = button.getAttribute("aria-pressed") === "true" && button.dataset.again !== "true";
        tell("decide", { id, decision: again ? null : word });
      });
    }
    note.addEventListener("change", () => tell("decide", { id, note: note.value }));
    rows.set(id, { li, name, told, accept, reject, note });
  }
  return rows.get(id);
}

function showList() {
  const list = state.told.recordings, look = state.told.look;
  $("none").hidden = list.length > 0;
  const kept = new Set(list.map((each) => each.id));
  for (const [id, { li }] of rows) if (!kept.has(id)) { li.remove(); rows.delete(id); }
  list.forEach((each, place) => {
    const { li, name, told, accept, reject, note } = row(each.id);
    const size = each.shape ? `${each.shape[0]} frames of ${each.shape[1]} × ${each.shape[2]}`
      : look && look.recording === each.name ? `${look.n_frames} frames` : "";
    const run = each.run === null ? (each.decision === "accepted" && !each.problem ? "its run waits" : "") : RUN[each.run] || each.run;
    name.textContent = each.name;
    told.textContent = [WORDS[each.state], size, each.problem, run, each.why].filter(Boolean).join("; ");
    accept.setAttribute("aria-pressed", String(each.decision === "accepted"));
    accept.dataset.again = String(each.run === "refused");
    reject.setAttribute("aria-pressed", String(each.decision === "rejected"));
    accept.setAttribute("aria-label", `Accept ${each.name}`);
    reject.setAttribute("aria-label", `Reject ${each.name}`);
    note.setAttribute("aria-label", `Note on ${each.name}`);
    if (document.activeElement !== note) note.value = each.note;
    li.toggleAttribute("data-shown", Boolean(look && look.recording === each.name));
    if ($("recordings").children[place] !== li) $("recordings").insertBefore(li, $("recordings").children[place] || null);
  });
  const more = list.length && list[0].total - list.length;
  $("heading").textContent = more > 0 ? `Recordings (${more} older ones are not listed)` : "Recordings";
}

setInterval(showBehind, 1000);
$("newest").addEventListener("click", () => tell("show", { id: null }));
stay();
