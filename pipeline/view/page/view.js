"use strict";
// The page of `tdenoise-pipeline view`: pictures of one frame side by side, of which all show the same part.

const NAMES = { counts: "Raw counts", denoised: "Denoised", difference: "Difference: raw − denoised" };
const ZOOM = 1.25;
const AHEAD = 6; // frames asked for before they are shown
const KEPT = 48; // frames that the page keeps
const PIECE = 256; // frames of a trace in one answer
const EMPTY = 65535;

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const state = {
  sets: [], set: 0, frame: 0, playing: false, view: null, place: null, trace: null,
  panels: [], limits: {}, shown: null, wanted: 0, drawn: 0,
};

async function ask(name, words = {}, options = {}) {
  const answer = await fetch(`${name}?${new URLSearchParams(words)}`, { headers: { "X-Token": token }, ...options });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

function complain(error) {
  state.playing = false;
  showPlay();
  const gone = error instanceof TypeError;
  $("message").textContent = gone
    ? "The program that serves this page does not answer. Start 'tdenoise-pipeline view' again." : error.message;
  $("message").hidden = false;
}

const movie = () => state.sets[state.set];
const number = (value) => Number(value.toPrecision(3)).toString();

// ---- what is shown -------------------------------------------------------------------------------------------

function choose(index) {
  state.set = index;
  state.frame = 0;
  state.place = state.trace = state.shown = null;
  state.playing = false;
  showPlay();
  cache.clear();
  const found = movie(), names = Object.keys(found.layers);
  if (names.length === 2) names.push("difference");
  state.limits = {};
  for (const name of Object.keys(found.layers)) {
    const [low, high] = found.layers[name].window;
    state.limits[name] = { low, high, ends: [low - 0.5 * (high - low), high + (high - low)] };
  }
  if (names.length === 3) {
    const [low, high] = found.layers.counts.window;
    const reach = Math.max(high - low, 1e-9) / 2;
    state.limits.difference = { low: -reach, high: reach, ends: [-3 * reach, 3 * reach] };
  }
  $("panels").replaceChildren(...names.map(panel));
  $("panels").style.setProperty("--columns", names.length);
  state.panels = names.map((name, i) => {
    const canvas = $("panels").children[i].querySelector("canvas");
    return { name, canvas, context: canvas.getContext("2d", { alpha: false }) };
  });
  const [n, height, width] = found.shape;
  $("title").textContent = document.title = found.title;
  const size = found.pixel_size_nm ? `, ${number(found.pixel_size_nm)} nm per pixel` : "";
  const time = found.frame_time_s ? `, ${number(1e3 * found.frame_time_s)} ms per frame` : "";
  $("facts").textContent = `${n} frames of ${height} x ${width}${size}${time}`;
  $("frame").max = n - 1;
  $("where").textContent = "Click into a picture to see how that place changes with time";
  $("trace").hidden = $("legend").hidden = true;
  for (const [id, name] of [["dots", "counts"], ["line", "denoised"]]) $(id).hidden = !(name in found.layers);
  $("bandtext").hidden = true;
  $("changes").hidden = !(found.changes && found.changes.length);
  $("change").textContent = found.changes
    ? `${found.changes.length} changes found by 'events', ${found.changes.filter((c) => c.p >= 0.9).length} of them with 90 % or more`
    : "";
  fit();
}

function panel(name) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = NAMES[name];
  const small = document.createElement("small");
  small.id = `value-${name}`;
  caption.append(small);
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.id = name;
  canvas.setAttribute("aria-label", NAMES[name]);
  listen(canvas, name);
  const row = document.createElement("div");
  row.className = "contrast";
  const limits = state.limits[name];
  for (const end of ["low", "high"]) {
    const label = document.createElement("label");
    label.textContent = end === "low" ? "black" : "white";
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: 0, max: 1000, id: `${name}-${end}` });
    label.htmlFor = input.id;
    const [first, last] = limits.ends;
    input.value = (1000 * (limits[end] - first)) / (last - first);
    const tell = () => { input.title = number(limits[end]); input.setAttribute("aria-valuetext", input.title); };
    input.addEventListener("input", () => {
      limits[end] = first + (input.value / 1000) * (last - first);
      tell();
      draw();
    });
    tell();
    row.append(label, input);
  }
  figure.append(caption, canvas, row);
  return figure;
}

// A view is the middle of what is shown, in pixels of the movie, and how many of them make a pixel of the screen.

function fit() {
  measure();
  const [, height, width] = movie().shape, canvas = state.panels[0].canvas;
  state.view = { y: height / 2, x: width / 2, scale: Math.max(height / canvas.height, width / canvas.width) };
  request();
}

function measure() {
  const [, height, width] = movie().shape;
  for (const { canvas } of state.panels) {
    const wide = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    const share = wide > 0.8 * window.innerWidth && state.panels.length > 1 ? 0.33 : 0.68; // below each other
    const high = Math.min(wide * Math.min(1.25, Math.max(0.35, height / width)), share * window.innerHeight);
    canvas.style.height = `${Math.round(high)}px`;
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
  }
}

function zoom(factor, at) {
  const { canvas } = state.panels[0], view = state.view, [, height, width] = movie().shape;
  const widest = Math.max(height / canvas.height, width / canvas.width);
  const scale = Math.min(widest, Math.max(1 / 32, view.scale / factor));
  const [dy, dx] = at ? [at.y - view.y, at.x - view.x] : [0, 0];
  const kept = scale / view.scale;
  state.view = { scale, y: view.y + dy * (1 - kept), x: view.x + dx * (1 - kept) };
  clampView();
  request();
}

function clampView() {
  const { canvas } = state.panels[0], view = state.view, sizes = movie().shape;
  for (const [key, size, extent] of [["y", sizes[1], canvas.height], ["x", sizes[2], canvas.width]]) {
    const half = (extent * view.scale) / 2;
    view[key] = 2 * half >= size ? size / 2 : Math.min(size - half, Math.max(half, view[key]));
  }
}

// The part of a frame that the server is asked for: a little more than is shown, on a grid, so that it is asked for once.
function part() {
  const { canvas } = state.panels[0], view = state.view, [, height, width] = movie().shape;
  let pixels = 1;
  while (2 * pixels <= view.scale * 1.01 && pixels < 64) pixels *= 2;
  const grid = 128 * pixels;
  const span = (middle, extent, size) => {
    const half = (extent * view.scale) / 2;
    return [Math.max(0, Math.floor((middle - half) / grid) * grid), Math.min(size, Math.ceil((middle + half) / grid) * grid)];
  };
  const [y0, y1] = span(view.y, canvas.height, height), [x0, x1] = span(view.x, canvas.width, width);
  return { pixels, y0, y1, x0, x1 };
}

// ---- frames --------------------------------------------------------------------------------------------------

const cache = new Map(); // promises of frames, by what was asked for; the oldest first

function load(t, where) {
  const key = JSON.stringify([state.set, t, where]);
  if (!cache.has(key)) {
    const names = Object.keys(movie().layers), set = state.set;
    const promise = Promise.all(names.map((layer) => fetchLayer(set, layer, t, where)))
      .then((found) => ({ t, where, layers: Object.fromEntries(names.map((name, i) => [name, found[i]])) }));
    promise.catch(() => cache.delete(key));
    cache.set(key, promise);
    while (cache.size > KEPT) cache.delete(cache.keys().next().value);
  }
  return cache.get(key);
}

async function fetchLayer(set, layer, t, where) {
  const answer = await ask("frame", { set, layer, t, ...where });
  const told = (name) => answer.headers.get(name);
  const [rows, columns] = told("X-Shape").split(" ").map(Number);
  const data = await answer.arrayBuffer();
  const codes = data.byteLength === rows * columns ? new Uint8Array(data) : new Uint16Array(data);
  return { codes, rows, columns, offset: Number(told("X-Offset")), scale: Number(told("X-Scale")) };
}

async function request() {
  const wanted = ++state.wanted, t = state.frame, where = part(), index = state.set;
  draw(); // what is there already, moved to its new place
  try {
    const found = await load(t, where);
    if (wanted < state.drawn || index !== state.set) return;
    state.drawn = wanted;
    state.shown = found;
    $("message").hidden = true;
    draw();
    if (!state.playing) load(Math.min(t + 1, movie().shape[0] - 1), where).catch(() => {});
  } catch (error) {
    if (wanted !== state.wanted) return;
    state.shown = null; // no other frame under the number of this one
    for (const { canvas, context } of state.panels) context.clearRect(0, 0, canvas.width, canvas.height);
    complain(error);
  }
}

let lastStep = 0;

async function play() {
  const n = movie().shape[0];
  while (state.playing) {
    const next = (state.frame + 1) % n, where = part(), index = state.set;
    for (let k = 1; k <= AHEAD; k++) load((state.frame + k) % n, where).catch(() => {});
    let found;
    try {
      found = await load(next, where);
    } catch (error) {
      complain(error);
      return;
    }
    const wait = 1000 / Number($("speed").value) - (performance.now() - lastStep);
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
    await new Promise(requestAnimationFrame);
    if (!state.playing || index !== state.set) break;
    lastStep = performance.now();
    state.frame = next;
    state.shown = found;
    state.drawn = ++state.wanted;
    draw();
  }
}

function showPlay() {
  $("play").textContent = state.playing ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(state.playing));
}

function toggle() {
  state.playing = !state.playing;
  showPlay();
  if (state.playing) play();
  else request();
}

function go(t) {
  state.frame = Math.min(movie().shape[0] - 1, Math.max(0, t));
  request();
}

// ---- drawing -------------------------------------------------------------------------------------------------

// Black to white; the difference from blue over white to red.
function shades(name) {
  const table = new Uint32Array(257), little = (r, g, b) => 0xff000000 | (b << 16) | (g << 8) | r;
  for (let i = 0; i < 256; i++) {
    const s = (i - 127.5) / 127.5;
    table[i] = name !== "difference" ? little(i, i, i)
      : s < 0 ? little(255 + 222 * s, 255 + 153 * s, 255 + 83 * s) : little(255 - 77 * s, 255 - 231 * s, 255 - 212 * s);
  }
  table[256] = little(96, 72, 24); // not recorded
  return table;
}

const TABLES = { counts: shades("counts"), denoised: shades("denoised"), difference: shades("difference") };
const offscreen = document.createElement("canvas");

function picture(name, layers) {
  const first = layers[name] || layers.counts;
  const image = new ImageData(first.columns, first.rows), pixels = new Uint32Array(image.data.buffer);
  const { low, high } = state.limits[name], table = TABLES[name], n = pixels.length;
  const gain = 256 / Math.max(high - low, 1e-12);
  if (name !== "difference") {
    const { codes, offset, scale } = first, empty = codes.BYTES_PER_ELEMENT === 2 ? EMPTY : -1;
    const a = scale * gain, b = (offset - low) * gain;
    for (let i = 0; i < n; i++) {
      const v = a * codes[i] + b;
      pixels[i] = table[codes[i] === empty ? 256 : v > 0 ? Math.min(v, 255) | 0 : 0];
    }
  } else {
    const one = layers.counts, two = layers.denoised;
    const emptyOne = one.codes.BYTES_PER_ELEMENT === 2 ? EMPTY : -1;
    const a = one.scale * gain, c = two.scale * gain, b = (one.offset - two.offset - low) * gain;
    for (let i = 0; i < n; i++) {
      const v = a * one.codes[i] - c * two.codes[i] + b;
      const empty = one.codes[i] === emptyOne || two.codes[i] === EMPTY;
      pixels[i] = table[empty ? 256 : v > 0 ? Math.min(v, 255) | 0 : 0];
    }
  }
  return image;
}

function draw() {
  $("frame").value = state.frame;
  const found = movie(), step = found.frame_time_s;
  const seconds = step ? `, ${((state.frame + found.first_frame) * step).toFixed(step < 0.01 ? 4 : 3)} s` : "";
  $("now").textContent = `frame ${state.frame}${seconds}`;
  drawTrace();
  drawTicks();
  if (!state.shown || !state.shown.layers[state.panels[0].name]) return;
  const { where, layers } = state.shown, view = state.view;
  for (const { name, canvas, context } of state.panels) {
    const image = picture(name, layers);
    offscreen.width = image.width;
    offscreen.height = image.height;
    offscreen.getContext("2d").putImageData(image, 0, 0);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--pale");
    context.fillRect(0, 0, canvas.width, canvas.height);
    // A pixel of the screen is never made of others than those that lie there, unless there are more of them than fit.
    context.imageSmoothingEnabled = view.scale > where.pixels;
    const left = (where.x0 - view.x) / view.scale + canvas.width / 2;
    const top = (where.y0 - view.y) / view.scale + canvas.height / 2;
    const size = where.pixels / view.scale;
    context.drawImage(offscreen, left, top, image.width * size, image.height * size);
    mark(context, canvas);
    markChanges(context, canvas);
    scaleBar(context, canvas);
  }
}

function scaleBar(context, canvas) {
  const nm = movie().pixel_size_nm, unit = nm ? "nm" : "px";
  const perPixel = state.view.scale * (nm || 1), ratio = window.devicePixelRatio || 1;
  const [, height, width] = movie().shape, view = state.view;
  // Within the frame, which may not fill the canvas.
  const left = Math.max(0, canvas.width / 2 - view.x / view.scale);
  const bottom = Math.min(canvas.height, canvas.height / 2 + (height - view.y) / view.scale);
  const most = 0.3 * Math.min(canvas.width, width / view.scale) * perPixel;
  let length = 10 ** Math.floor(Math.log10(most));
  for (const factor of [5, 2]) if (factor * length <= most) { length *= factor; break; }
  const wide = length / perPixel, thick = 4 * ratio, margin = left + 10 * ratio;
  const text = `${number(length)} ${unit}`, y = bottom - 10 * ratio - thick;
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "bottom";
  context.lineJoin = "round";
  context.lineWidth = 3 * ratio;
  context.strokeStyle = "#000c";
  context.fillStyle = "#fff";
  context.strokeRect(margin, y, wide, thick);
  context.fillRect(margin, y, wide, thick);
  context.strokeText(text, margin, y - 3 * ratio);
  context.fillText(text, margin, y - 3 * ratio);
}

function mark(context, canvas) {
  if (!state.place) return;
  const { y, x, radius } = state.place, view = state.view, ratio = window.devicePixelRatio || 1;
  const at = [(x + 0.5 - view.x) / view.scale + canvas.width / 2, (y + 0.5 - view.y) / view.scale + canvas.height / 2];
  context.beginPath();
  context.arc(...at, Math.max(5 * ratio, (radius + 0.5) / view.scale), 0, 2 * Math.PI);
  for (const [style, wide] of [["#000a", 3.5], ["#ffd02e", 1.5]]) {
    context.strokeStyle = style;
    context.lineWidth = wide * ratio;
    context.stroke();
  }
}

// ---- the changes that `events` found --------------------------------------------------------------------------

function markChanges(context, canvas) {
  if (!movie().changes || !$("marks").checked) return;
  const view = state.view, ratio = window.devicePixelRatio || 1, t = state.shown.t;
  context.font = `600 ${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  for (const change of movie().changes) {
    if (t < Math.min(change.first, change.t - 1) || t > Math.max(change.last, change.t + 1)) continue;
    const x = (change.x + 0.5 - view.x) / view.scale + canvas.width / 2;
    const y = (change.y + 0.5 - view.y) / view.scale + canvas.height / 2, size = Math.max(8 * ratio, 7 / view.scale);
    const text = `${change.after > change.before ? "more" : "less"} (${Math.round(100 * change.p)} %)`;
    context.beginPath();
    context.rect(x - size, y - size, 2 * size, 2 * size);
    context.strokeStyle = "#000a";
    context.lineWidth = 3.5 * ratio;
    context.stroke();
    // To the left of the box where there is no room to the right of it.
    const wide = size + 3 * ratio, room = canvas.width - x - wide >= context.measureText(text).width;
    context.textAlign = room ? "left" : "right";
    const at = room ? x + wide : x - wide;
    context.strokeText(text, at, y);
    context.strokeStyle = context.fillStyle = "#7dff8a";
    context.lineWidth = 1.5 * ratio;
    context.stroke();
    context.fillText(text, at, y);
  }
  context.textAlign = "left";
}

function drawTicks() {
  const canvas = $("ticks"), { changes, shape } = movie();
  if ($("changes").hidden) return;
  const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d"), place = (t) => (t / Math.max(1, shape[0] - 1)) * (canvas.width - 2 * ratio);
  context.fillStyle = style.getPropertyValue("--accent");
  for (const { t, p } of changes) context.fillRect(place(t), canvas.height * (1 - p), 2 * ratio, canvas.height * p);
  context.fillStyle = style.getPropertyValue("--warn");
  context.fillRect(place(state.frame), 0, ratio, canvas.height);
}

function nextChange() {
  const { changes } = movie();
  if (!changes || !changes.length) return;
  const found = changes.find((change) => change.t > state.frame) || changes[0];
  $("change").textContent = `frame ${found.t}, row ${found.y.toFixed(0)}, column ${found.x.toFixed(0)}: ${number(found.before)} to `
    + `${number(found.after)}, probability ${Math.round(100 * found.p)} %`;
  const { canvas } = state.panels[0], view = state.view;
  const away = Math.max(Math.abs(found.y - view.y) / canvas.height, Math.abs(found.x - view.x) / canvas.width);
  if (away > 0.4 * view.scale) {
    Object.assign(view, { y: found.y, x: found.x });
    clampView();
  }
  go(found.t);
}

// ---- the trace of a place ------------------------------------------------------------------------------------

async function follow(place) {
  state.place = place;
  const n = movie().shape[0], set = state.set;
  const trace = (state.trace = { counts: new Array(n), denoised: new Array(n), half: new Array(n), done: 0 });
  $("trace").hidden = $("legend").hidden = false;
  tellPlace();
  draw();
  // From what is shown outwards, so that the next of it is there first.
  const starts = [];
  for (let first = 0; first < n; first += PIECE) starts.push(first);
  starts.sort((a, b) => Math.abs(a + PIECE / 2 - state.frame) - Math.abs(b + PIECE / 2 - state.frame));
  try {
    for (const t0 of starts) {
      const t1 = Math.min(n, t0 + PIECE);
      const found = await (await ask("trace", { set, ...place, t0, t1 })).json();
      if (trace !== state.trace) return;
      for (let t = t0; t < t1; t++) {
        if (found.counts) trace.counts[t] = found.counts[t - t0];
        if (found.denoised) trace.denoised[t] = found.denoised[t - t0];
        if (found.half_width) trace.half[t] = found.half_width[t - t0];
      }
      trace.done += t1 - t0;
      trace.n_pixels = found.n_pixels;
      $("bandtext").hidden = !found.half_width;
      tellPlace();
      drawTrace();
    }
  } catch (error) {
    if (trace === state.trace) complain(error);
  }
}

function tellPlace() {
  const { y, x } = state.place, n = state.trace.n_pixels, total = movie().shape[0];
  const mean = n > 1 ? `mean of ${n} pixels about ` : "";
  const part = state.trace.done < total ? ` (read: ${state.trace.done} of ${total} frames)` : "";
  $("where").textContent = `Trace: ${mean}row ${y}, column ${x} [${movie().units}]${part}`;
}

function drawTrace() {
  const { trace } = state, canvas = $("trace");
  if (!trace || canvas.hidden) return;
  const ratio = window.devicePixelRatio || 1, n = movie().shape[0];
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const ink = (name) => style.getPropertyValue(name).trim();
  let low = Infinity, high = -Infinity;
  for (let t = 0; t < n; t++) {
    for (const value of [trace.counts[t], trace.denoised[t], trace.denoised[t] + trace.half[t], trace.denoised[t] - trace.half[t]])
      if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  if (!(low <= high)) return;
  if (low === high) high = low + 1;
  const left = 46 * ratio, bottom = canvas.height - 18 * ratio, top = 6 * ratio, wide = canvas.width - left - 6 * ratio;
  const px = (t) => left + (n > 1 ? (t / (n - 1)) * wide : wide / 2);
  const py = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.fillStyle = ink("--soft");
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of [low, high]) context.fillText(number(value), left - 5 * ratio, Math.max(py(value), top + 4 * ratio));
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillText("frame 0", left, bottom + 4 * ratio);
  context.textAlign = "right";
  context.fillText(String(n - 1), left + wide, bottom + 4 * ratio);
  context.strokeStyle = ink("--line");
  context.strokeRect(left, top, wide, bottom - top);
  const known = (t) => Number.isFinite(trace.denoised[t]);
  context.fillStyle = ink("--band");
  for (let t = 0; t < n; t++) {
    if (!known(t) || !Number.isFinite(trace.half[t])) continue;
    const a = px(Math.max(0, t - 0.5)), b = px(Math.min(n - 1, t + 0.5));
    context.fillRect(a, py(trace.denoised[t] + trace.half[t]), b - a, py(trace.denoised[t] - trace.half[t]) - py(trace.denoised[t] + trace.half[t]));
  }
  context.fillStyle = ink("--soft");
  const dot = (n > 1500 ? 0.8 : 1.6) * ratio;
  for (let t = 0; t < n; t++)
    if (Number.isFinite(trace.counts[t])) context.fillRect(px(t) - dot, py(trace.counts[t]) - dot, 2 * dot, 2 * dot);
  context.strokeStyle = ink("--accent");
  context.lineWidth = 1.6 * ratio;
  context.beginPath();
  for (let t = 0; t < n; t++) if (known(t)) context[t > 0 && known(t - 1) ? "lineTo" : "moveTo"](px(t), py(trace.denoised[t]));
  context.stroke();
  context.strokeStyle = ink("--warn");
  context.lineWidth = ratio;
  context.beginPath();
  context.moveTo(px(state.frame), top);
  context.lineTo(px(state.frame), bottom);
  context.stroke();
}

// ---- mouse, fingers, keys ------------------------------------------------------------------------------------

function spot(canvas, event) {
  const box = canvas.getBoundingClientRect(), view = state.view;
  return {
    y: view.y + ((event.clientY - box.top) * (canvas.height / box.height) - canvas.height / 2) * view.scale,
    x: view.x + ((event.clientX - box.left) * (canvas.width / box.width) - canvas.width / 2) * view.scale,
  };
}

function inside({ y, x }) {
  const [, height, width] = movie().shape;
  return y >= 0 && x >= 0 && y < height && x < width;
}

function listen(canvas, name) {
  const held = new Map();
  let moved = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(ZOOM ** (event.deltaY < 0 ? 1 : -1), spot(canvas, event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, event);
    moved = held.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    tellValue(name, spot(canvas, event));
    const before = held.get(event.pointerId);
    if (!before) return;
    const gap = () => Math.hypot(...["clientX", "clientY"].map((key) => [...held.values()].map((e) => e[key]).reduce((a, b) => a - b)));
    const was = held.size === 2 ? gap() : 0;
    held.set(event.pointerId, event);
    if (held.size === 2) {
      if (was > 0) zoom(gap() / was, spot(canvas, event));
      return;
    }
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    moved += Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY);
    if (moved < 4) return;
    state.view.y -= (event.clientY - before.clientY) * ratio * state.view.scale;
    state.view.x -= (event.clientX - before.clientX) * ratio * state.view.scale;
    clampView();
    request();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => {
    held.delete(event.pointerId);
    const place = spot(canvas, event);
    if (end === "pointerup" && moved < 4 && inside(place))
      follow({ y: Math.floor(place.y), x: Math.floor(place.x), radius: Number($("radius").value) });
  });
  canvas.addEventListener("pointerleave", () => { $(`value-${name}`).textContent = ""; });
  canvas.addEventListener("dblclick", fit);
}

function tellValue(name, place) {
  const shown = state.shown, text = $(`value-${name}`);
  if (!shown || !inside(place)) { text.textContent = ""; return; }
  const { where, layers } = shown;
  const value = (layer) => {
    const row = Math.floor((place.y - where.y0) / where.pixels), column = Math.floor((place.x - where.x0) / where.pixels);
    if (row < 0 || column < 0 || row >= layer.rows || column >= layer.columns) return NaN;
    const code = layer.codes[row * layer.columns + column];
    return layer.codes.BYTES_PER_ELEMENT === 2 && code === EMPTY ? NaN : layer.offset + layer.scale * code;
  };
  const found = name === "difference" ? value(layers.counts) - value(layers.denoised) : value(layers[name]);
  const mean = where.pixels > 1 ? `, mean of ${where.pixels} x ${where.pixels}` : "";
  text.textContent = Number.isFinite(found) ? `${number(found)} at ${Math.floor(place.y)}, ${Math.floor(place.x)}${mean}` : "";
}

function keys(event) {
  if (["SELECT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const slides = event.target.tagName === "INPUT", pressed = event.target.tagName === "BUTTON";
  const does = {
    " ": pressed ? null : toggle, "+": () => zoom(ZOOM), "=": () => zoom(ZOOM), "-": () => zoom(1 / ZOOM), "0": fit,
    n: nextChange, ArrowRight: slides ? null : () => go(state.frame + 1), ArrowLeft: slides ? null : () => go(state.frame - 1),
    Home: slides ? null : () => go(0), End: slides ? null : () => go(movie().shape[0] - 1),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

// The program ends with its last tab. A page that the browser keeps for "back" is shown again without being loaded.
function tellTab() {
  const tab = { tab: Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-") };
  const tell = (what) => ask(what, tab, { keepalive: true }).catch(() => {});
  window.addEventListener("pageshow", (event) => { if (event.persisted) tell("opened"); });
  window.addEventListener("pagehide", () => tell("closed"));
  return tell("opened");
}

async function begin() {
  try {
    await tellTab();
    state.sets = await (await ask("about")).json();
  } catch (error) {
    complain(error);
    return;
  }
  $("set").replaceChildren(...state.sets.map((found, i) => new Option(found.title, i)));
  $("choose").hidden = state.sets.length < 2;
  $("set").addEventListener("change", () => choose(Number($("set").value)));
  $("play").addEventListener("click", toggle);
  $("back").addEventListener("click", () => go(state.frame - 1));
  $("on").addEventListener("click", () => go(state.frame + 1));
  $("fit").addEventListener("click", fit);
  $("frame").addEventListener("input", () => go(Number($("frame").value)));
  $("radius").addEventListener("change", () => {
    if (state.place) follow({ ...state.place, radius: Number($("radius").value) });
  });
  $("trace").addEventListener("click", (event) => {
    const box = $("trace").getBoundingClientRect(), left = 46, wide = box.width - left - 6;
    go(Math.round(((event.clientX - box.left - left) / wide) * (movie().shape[0] - 1)));
  });
  $("next").addEventListener("click", nextChange);
  $("marks").addEventListener("change", draw);
  $("ticks").addEventListener("click", (event) => {
    const box = $("ticks").getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * (movie().shape[0] - 1)));
  });
  document.addEventListener("keydown", keys);
  choose(0);
  // Of the window, and where a bar to scroll comes or goes.
  let waiting = 0;
  const again = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { measure(); clampView(); request(); }, 100);
  };
  window.addEventListener("resize", again);
  let wide = $("panels").clientWidth;
  new ResizeObserver(() => {
    if ($("panels").clientWidth !== wide) again();
    wide = $("panels").clientWidth;
  }).observe($("panels"));
}

begin();
