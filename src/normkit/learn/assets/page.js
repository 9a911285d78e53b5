// Controls, guesses, language. A section registers {draw, truth, actions}; `draw` gets the values of its controls.

const SECTIONS = {};
const NUMBERS = JSON.parse(document.getElementById("numbers").textContent);
const root = document.documentElement;

function section(id, parts) { SECTIONS[id] = {parts, place: document.getElementById(id)}; }
function t(en, zh) { return root.lang === "zh" ? zh : en; }
function valueOf(input) { return input.hasAttribute("data-log") ? 10 ** Number(input.value) : Number(input.value); }

function stateOf(place) {
  const state = {};
  for (const input of place.querySelectorAll("input[data-name]")) {
    if (input.type === "range") state[input.dataset.name] = valueOf(input);
    else if (input.checked) state[input.dataset.name] = input.value;
  }
  return state;
}

function say(place, name, words, quality = "") {
  for (const out of place.querySelectorAll(`[data-out="${name}"]`)) {
    out.textContent = words;
    out.classList.toggle("good", quality === "good");
    out.classList.toggle("bad", quality === "bad");
  }
}

function set(place, name, value) {  // by the page's own actions, as if the reader had moved it
  const input = place.querySelector(`input[type=range][data-name="${name}"]`);
  input.value = value;
  label(input);
}

function label(input) {
  const out = input.parentElement.querySelector(`output[for="${input.id}"]`);
  const show = SECTIONS[input.closest("section").id]?.parts.labels?.[input.dataset.name] ?? short;
  out.textContent = show(valueOf(input));
  input.setAttribute("aria-valuetext", out.textContent);
}

function draw(id) {
  const {parts, place} = SECTIONS[id];
  parts.draw(stateOf(place), place, (name) => place.querySelector(`[data-plot="${name}"]`));
}

function moved(place, name) {
  for (const symbol of place.querySelectorAll(".sym")) symbol.classList.toggle("moved", symbol.dataset.sym === name);
}

function compare(id) {
  const {parts, place} = SECTIONS[id], input = place.querySelector("[data-guess]"), box = place.querySelector(".truth");
  const truth = parts.truth(), guess = valueOf(input), at = (v) => (input.hasAttribute("data-log") ? Math.log10(v) : v);
  box.hidden = false;
  const c = chart(box.querySelector(".scale"), 62, 200);
  const x = scaled(Number(input.min), Number(input.max), 12, c.width - 12);
  const end = (v) => (x(v) < c.width * 0.25 ? "start" : x(v) > c.width * 0.75 ? "end" : "middle");
  c.line(12, 31, c.width - 12, 31, "grid", {"stroke-width": 3});
  c.dot(x(at(guess)), 31, 6, "muted");
  c.dot(x(at(truth)), 31, 8, "good");
  c.text(x(at(truth)), 15, `${t("computed", "算出")} ${short(truth, 4)}`, {"text-anchor": end(at(truth))});
  c.text(x(at(guess)), 56, `${t("you", "你猜")} ${short(guess, 4)}`, {"text-anchor": end(at(guess)), class: "muted"});
}

function speak(language) {
  root.lang = language;
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", String(button.dataset.language === language));
  document.title = t("Batch normalization, played with · normkit", "玩转批归一化 · normkit");
  redraw();
}

function redraw() {
  for (const [id, {place}] of Object.entries(SECTIONS)) {
    for (const input of place.querySelectorAll("input[type=range]")) label(input);
    draw(id);
    if (!place.querySelector(".truth").hidden) compare(id);
  }
}

// With `normkit learn --serve` the library itself answers for free values; else the page's own numbers stand alone.
async function fromLibrary(request) {
  if (!root.hasAttribute("data-served")) return null;
  try {
    const answer = await fetch("/compute", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(request)});
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}

function start() {
  for (const [id, {parts, place}] of Object.entries(SECTIONS)) {
    place.addEventListener("input", (event) => {
      if (event.target.type === "range") label(event.target);
      if (event.target.dataset.name) { moved(place, event.target.dataset.name); draw(id); }
    });
    place.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if ("check" in button.dataset) compare(id);
      else if (button.dataset.do) { parts.actions[button.dataset.do](place, stateOf(place), button); draw(id); }
    });
  }
  for (const button of document.querySelectorAll("[data-language]")) button.addEventListener("click", () => speak(button.dataset.language));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
  speak(root.lang);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
