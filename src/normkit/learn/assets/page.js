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
  for (const symbol of place.querySelectorAll(".sym")) symbol.classList.toggle("moved", symbol.dataset.sym.split(" ").includes(name));
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

// Numbers that the reader typed, or null where there are none or they do not fit; then the line below says why.
function typed(place, name, least, most) {
  const input = place.querySelector(`[data-free="${name}"]`), words = input.value.trim().split(/[\s,;，；]+/).filter(Boolean);
  const values = words.map((word) => Number(word.replace("−", "-"))), fits = values.length >= least && values.length <= most;
  const wrong = !words.length ? "" : !values.every((v) => Number.isFinite(v) && Math.abs(v) <= 1e6) ? t("Numbers up to a million, please, with commas or spaces between.", "请输入不超过一百万的数，用逗号或空格分隔。")
    : fits ? "" : t(`${least === most ? least : `${least} to ${most}`} numbers, please; there are ${values.length}.`, `请输入 ${least === most ? least : `${least} 到 ${most}`} 个数；现在有 ${values.length} 个。`);
  input.setAttribute("aria-invalid", String(Boolean(wrong)));
  document.getElementById(`${input.id}-error`).textContent = wrong;
  return words.length && !wrong ? values : null;
}

// With `normkit learn --serve` the library itself answers; else the page's own numbers stand alone. The last question
// of a section counts. `shown` makes words of the answer.
const asked = {};
function fromLibrary(place, question, shown) {
  if (!root.hasAttribute("data-served")) return;
  clearTimeout(asked[place.id]);
  const mine = asked[place.id] = setTimeout(async () => {
    const answer = await posted("/compute", JSON.stringify({section: place.id, ...question}));
    if (asked[place.id] !== mine) return;
    const away = answer.error ? null : shown(answer);
    say(place, "library", answer.error ?? away.words, answer.error ? "bad" : away.good ? "good" : "");
  }, 60);
}

async function posted(path, body) {  // the answer, or {error}
  try {
    const answer = await fetch(path, {method: "POST", body});
    return answer.ok ? await answer.json() : {error: await answer.text()};
  } catch { return {error: t("the server does not answer", "服务器没有响应")}; }
}

async function uploaded(input) {
  const answer = input.files.length ? await posted("/own", input.files[0]) : {};
  const lacks = !answer.error && input.files.length && !answer[input.dataset.upload];
  const error = answer.error ?? (lacks ? t(`there is no array called ${input.dataset.upload === "maps" ? "images" : "values"}`, "文件里没有所需的数组") : "");
  document.getElementById(`${input.id}-error`).textContent = error;
  input.setAttribute("aria-invalid", String(Boolean(error)));
  if (error || !input.files.length) return;
  for (const name of ["maps", "values"]) if (answer[name]) NUMBERS[name] = answer[name];
  redraw();
}

// The largest distance of two lists, as words; `good` within the rounding of the page's own arithmetic.
function apart(mine, theirs) {
  const most = Math.max(...mine.map((v, i) => Math.abs(v - theirs[i])));
  const good = most <= 1e-9 * Math.max(1e-3, ...theirs.map(Math.abs));
  return {words: `${t("differs by", "相差")} ${short(most, 2)}`, good};
}

function start() {
  for (const [id, {parts, place}] of Object.entries(SECTIONS)) {
    place.addEventListener("input", (event) => {
      if (event.target.type === "range") label(event.target);
      if (event.target.dataset.name) { moved(place, event.target.dataset.name); draw(id); }
      if (event.target.dataset.free) draw(id);
    });
    place.addEventListener("change", (event) => { if (event.target.dataset.upload) uploaded(event.target); });
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
