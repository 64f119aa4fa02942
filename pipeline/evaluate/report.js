(() => {
  "use strict";
  const film = document.getElementById("film");
  const the = (id) => document.getElementById(id);
  const video = film.querySelector("video");
  const stills = [...film.querySelectorAll(".stills img")];
  const canvas = film.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const [height, width, stride, rate] = ["height", "width", "stride", "rate"].map((name) => Number(film.dataset[name]));
  const numbers = film.dataset.numbers.split(" ").map(Number);
  const times = film.dataset.times.split("|");
  const marks = JSON.parse(film.dataset.marks);
  const gap = Math.max(2, Math.round(width / 64));
  const zoom = Math.max(1, Math.ceil(512 / Math.max(width, height)));
  const stage = film.querySelector(".stage");
  const titles = film.querySelector(".titles");
  const described = {
    beside: "Raw frame beside the denoised frame",
    wipe: "Raw frame on the left of the line, denoised frame on its right",
    difference: "Raw minus denoised, in standard deviations of the noise",
  };
  const named = { beside: ["raw", "denoised"], wipe: ["raw | denoised"], difference: ["removed: raw minus denoised"] };
  let mode = "beside";
  let cut = 0.5;
  let now = Number(film.dataset.shown);
  let sought = -1;

  const panel = (number, to, from, upto) => {
    const source = video || stills[now];
    const left = Math.round(width * from);
    const columns = Math.round(width * upto) - left;
    if (columns > 0) pen.drawImage(source, number * stride + left, 0, columns, height, (to + left) * zoom, 0, columns * zoom, height * zoom);
  };

  // The changes that `events` found, boxed in the frames around them.
  const mark = (to) => {
    const half = Math.max(3, width / 32);
    pen.font = `600 ${Math.round(canvas.height / 36)}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (const { first, last, row, column, label } of marks) {
      if (numbers[now] < first || numbers[now] > last) continue;
      const [x, y] = [(to + column + 0.5) * zoom, (row + 0.5) * zoom];
      const left = column + half > width * 0.8;
      pen.textAlign = left ? "right" : "left";
      for (const [colour, line] of [["#000a", 4], ["#7dff8a", 2]]) {
        pen.strokeStyle = pen.fillStyle = colour;
        pen.lineWidth = line;
        pen.strokeRect(x - half * zoom, y - half * zoom, 2 * half * zoom, 2 * half * zoom);
        if (line > 2) pen.strokeText(label, x + (left ? -1 : 1) * (half * zoom + 4), y);
        else pen.fillText(label, x + (left ? -1 : 1) * (half * zoom + 4), y);
      }
    }
  };

  // As wide as there is room for, and no higher than leaves room for the controls.
  const fit = () => {
    const columns = mode === "beside" ? 2 * width + gap : width;
    stage.style.width = `${Math.min(film.clientWidth, (0.6 * innerHeight * columns) / height)}px`;
  };

  const draw = () => {
    const columns = mode === "beside" ? 2 * width + gap : width;
    if (canvas.width !== columns * zoom || canvas.height !== height * zoom) {
      canvas.width = columns * zoom;
      canvas.height = height * zoom;
    }
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (video ? video.readyState < 2 : !stills[now].complete) return;
    if (mode === "difference") {
      panel(2, 0, 0, 1);
      mark(0);
    }
    else if (mode === "wipe") {
      panel(0, 0, 0, cut);
      panel(1, 0, cut, 1);
      mark(0);
      pen.fillStyle = "#ffb000";
      pen.fillRect(Math.round(width * cut) * zoom - 1, 0, 2, canvas.height);
    } else {
      panel(0, 0, 0, 1);
      panel(1, width + gap, 0, 1);
      mark(0);
      mark(width + gap);
    }
    the("frame").value = now;
    const text = times[now] || `frame ${numbers[now]}`;
    the("frame").setAttribute("aria-valuetext", text);
    the("now").textContent = text;
  };

  const at = (seconds) => Math.min(numbers.length - 1, Math.max(0, Math.floor(seconds * rate + 1e-3)));

  const show = (index) => {
    now = Math.min(numbers.length - 1, Math.max(0, index));
    if (!video) return draw();
    video.pause();
    sought = now;
    video.currentTime = (now + 0.5) / rate;
  };

  const choose = (chosen) => {
    mode = chosen;
    for (const button of film.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    the("cutline").hidden = mode !== "wipe";
    canvas.classList.toggle("wiping", mode === "wipe");
    canvas.setAttribute("aria-label", described[mode]);
    film.classList.toggle("single", mode !== "beside");
    titles.replaceChildren(...named[mode].map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    fit();
    draw();
  };

  const wipe = (share) => {
    cut = Math.min(1, Math.max(0, share));
    the("cut").value = Math.round(100 * cut);
    draw();
  };

  const play = () => {
    if (!video) return;
    sought = -1;
    if (video.paused) video.play().catch(() => {});
    else video.pause();
  };

  stage.hidden = false;
  film.querySelector(".controls").hidden = false;
  for (const plain of film.querySelectorAll(".plain")) plain.hidden = true;
  the("frame").addEventListener("input", (event) => show(Number(event.target.value)));
  the("cut").addEventListener("input", (event) => wipe(Number(event.target.value) / 100));
  for (const button of film.querySelectorAll("[data-mode]")) button.addEventListener("click", () => choose(button.dataset.mode));

  // On the picture: a click shows the difference, and in the wipe the line follows the pointer.
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  };
  canvas.addEventListener("click", () => mode === "wipe" || choose(mode === "difference" ? "beside" : "difference"));
  canvas.addEventListener("pointerdown", (event) => {
    if (mode !== "wipe") return;
    canvas.setPointerCapture(event.pointerId);
    wipe(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (mode === "wipe" && event.buttons) wipe(place(event));
  });

  const keys = {
    " ": play,
    k: play,
    ArrowLeft: () => show(now - 1),
    ArrowRight: () => show(now + 1),
    Home: () => show(0),
    End: () => show(numbers.length - 1),
    d: () => choose(mode === "difference" ? "beside" : "difference"),
    w: () => choose(mode === "wipe" ? "beside" : "wipe"),
    s: () => choose("beside"),
  };
  film.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || !(key in keys)) return;
    // Buttons, sliders and lists have a use of their own for these keys.
    if (event.target !== film && !/^[dkws]$/.test(key)) return;
    if (event.target.matches("select")) return;
    event.preventDefault();
    keys[key]();
  });

  if (video) {
    const button = the("play");
    const follow = () => {
      const playing = !video.paused;
      button.textContent = playing ? "❚❚" : "▶";
      button.setAttribute("aria-label", playing ? "Pause" : "Play");
    };
    button.addEventListener("click", play);
    the("speed").addEventListener("change", (event) => (video.playbackRate = Number(event.target.value)));
    for (const name of ["play", "pause"]) video.addEventListener(name, follow);
    const shown = (seconds) => {
      if (sought < 0) now = at(seconds);
      draw();
    };
    for (const name of ["seeked", "loadeddata", "timeupdate"]) video.addEventListener(name, () => shown(video.currentTime));
    if ("requestVideoFrameCallback" in video) {
      const each = (_, told) => {
        shown(told.mediaTime);
        video.requestVideoFrameCallback(each);
      };
      video.requestVideoFrameCallback(each);
    } else {
      const each = () => {
        if (!video.paused) shown(video.currentTime);
        requestAnimationFrame(each);
      };
      requestAnimationFrame(each);
    }
    // Some browsers play a film from memory, but not from an address that holds it.
    const bytes = Uint8Array.from(atob(video.src.slice(video.src.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    video.controls = false;
    video.muted = true;
    video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    video.addEventListener(
      "loadeddata",
      () => {
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) show(now);
        else video.play().catch(() => show(now));
      },
      { once: true },
    );
    follow();
  } else for (const still of stills) still.addEventListener("load", draw);
  choose("beside");
  addEventListener("resize", fit);

  // Sections: opened by a link to them, all of them by the button, and on paper.
  const sections = [...document.querySelectorAll("details")];
  const unfold = the("unfold");
  unfold.hidden = false;
  unfold.addEventListener("click", () => {
    const open = !sections.every((section) => section.open || !section.matches(".section"));
    for (const section of sections) if (section.matches(".section")) section.open = open;
    unfold.textContent = open ? "Close all sections" : "Open all sections";
  });
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || !target.matches("details")) return;
    target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = sections.filter((section) => !section.open && !section.matches(".inside details"));
    for (const section of folded) section.open = true;
  });
  addEventListener("afterprint", () => {
    for (const section of folded) section.open = false;
  });
})();
