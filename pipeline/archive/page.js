"use strict";
const form = document.getElementById("filter");
const items = [...document.querySelectorAll("li.item")];
const words = items.map((item) => item.textContent.toLowerCase());
function show() {
  const wanted = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = form.elements.kind.value;
  let n = 0;
  items.forEach((item, k) => {
    const fits = (!kind || item.dataset.kind === kind) && wanted.every((word) => words[k].includes(word));
    item.hidden = !fits;
    n += fits;
  });
  document.getElementById("n").textContent = `${n} of ${items.length} shown`;
}
form.hidden = false;
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target && target.hidden) { form.reset(); show(); target.scrollIntoView(); }
});
show();
