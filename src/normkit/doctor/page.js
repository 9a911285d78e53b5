"use strict";
// Draws the plots and shows the value under the pointer. Texts of the model are only ever put where text goes.
const layers = JSON.parse(document.getElementById("data").textContent).layers;
const tip = document.getElementById("tip");
const W = 300, H = 210, LEFT = 54, RIGHT = 8, TOP = 8, BOTTOM = 34;

const number = (value, digits = 3) =>
  value === null || value === undefined ? "not finite" : String(Number(value.toPrecision(digits))).replaceAll("-", "−");

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}

const hush = () => { tip.hidden = true; };

function scale(values, log, from, to) {
  const known = values.filter((v) => v !== null && (!log || v > 0)).map((v) => log ? Math.log10(v) : v);
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) { low = 0; high = 1; }
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  low -= pad; high += pad;
  const at = (v) => from + ((log ? Math.log10(v) : v) - low) / (high - low) * (to - from);
  return { at, low: log ? 10 ** low : low, high: log ? 10 ** high : high };
}

// One plot. x, y: a value a channel; points: what is said of channel i; same: both axes alike, with a diagonal.
function plot(title, x, y, { log = false, same = false, xName, yName, far = [], describe }) {
  const all = same ? x.concat(y) : null;
  const sx = scale(all || x, log, LEFT, W - RIGHT), sy = scale(all || y, log, H - BOTTOM, TOP);
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "aria-label": title });
  svg.append(element("rect", { class: "frame", x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM, rx: 4 }));
  if (same) svg.append(element("line", { class: "diagonal", x1: LEFT, y1: H - BOTTOM, x2: W - RIGHT, y2: TOP }));
  const shown = [];
  const path = { dots: "", far: "" };
  for (let i = 0; i < y.length; i++) {
    if (x[i] === null || y[i] === null || (log && (x[i] <= 0 || y[i] <= 0))) continue;
    const px = sx.at(x[i]), py = sy.at(y[i]);
    shown.push([px, py, i]);
    path[far[i] ? "far" : "dots"] += `M${px.toFixed(1)} ${py.toFixed(1)}h0`;
  }
  svg.append(element("path", { class: "dots", d: path.dots }), element("path", { class: "dots far", d: path.far }));
  const [first, last] = same ? [sx.low, sx.high] : [x[0], x[x.length - 1]];  // without a diagonal x is the channel
  const ends = [[number(first, same ? 2 : 6), LEFT, H - 20, "start"], [number(last, same ? 2 : 6), W - RIGHT, H - 20, "end"],
    [number(sy.low, 2), LEFT - 5, H - BOTTOM, "end"], [number(sy.high, 2), LEFT - 5, TOP + 10, "end"],
    [xName, (LEFT + W - RIGHT) / 2, H - 6, "middle"]];
  for (const [text, px, py, anchor] of ends) svg.append(element("text", { x: px, y: py, "text-anchor": anchor }, text));
  svg.append(element("text", { x: 10, y: (TOP + H - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${(TOP + H - BOTTOM) / 2})` }, yName));
  const ring = element("circle", { class: "ring", r: 5.5, visibility: "hidden" });
  svg.append(ring);
  const mark = (point, clientX, clientY) => {
    ring.setAttribute("cx", point[0]); ring.setAttribute("cy", point[1]); ring.setAttribute("visibility", "visible");
    say(describe(point[2]), clientX, clientY);
  };
  const leave = () => { ring.setAttribute("visibility", "hidden"); hush(); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) * W / box.width, py = (event.clientY - box.top) * H / box.height;
    let best = null, least = 30 * 30;
    for (const point of shown) {
      const d = (point[0] - px) ** 2 + (point[1] - py) ** 2;
      if (d < least) { least = d; best = point; }
    }
    if (best) mark(best, event.clientX, event.clientY); else leave();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  let place = -1;
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !shown.length) return;
    event.preventDefault();
    place = (place + step + shown.length) % shown.length;
    const box = svg.getBoundingClientRect(), point = shown[place];
    mark(point, box.left + point[0] * box.width / W, box.top + point[1] * box.height / H);
  });
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.append(caption, svg);
  return figure;
}

function draw(place, layer) {
  const channel = layer.indices || [];
  const std = (var_) => var_.map((v) => v === null || v + layer.eps_used < 0 ? null : Math.sqrt(v + layer.eps_used));
  const index = channel.map(Number), far = layer.far || [];
  if (layer.running_mean && layer.data_mean) {
    const both = (kind, a, b) => (i) => `channel ${channel[i]}\n${kind}: running ${number(a[i])}, data ${number(b[i])}`;
    const options = { same: true, xName: "data", yName: "running", far };
    place.append(plot("mean", layer.data_mean, layer.running_mean, { ...options, describe: both("mean", layer.running_mean, layer.data_mean) }));
    const own = std(layer.running_var), data = std(layer.data_var);
    place.append(plot("standard deviation, sqrt(var + eps)", data, own, { ...options, log: true, describe: both("std", own, data) }));
  } else if (layer.running_mean) {
    const one = (kind, a) => (i) => `channel ${channel[i]}\n${kind} ${number(a[i])}`;
    const own = std(layer.running_var);
    place.append(plot("running mean", index, layer.running_mean, { xName: "channel", yName: "mean", describe: one("running mean", layer.running_mean) }));
    place.append(plot("running standard deviation, sqrt(var + eps)", index, own, { xName: "channel", yName: "std", describe: one("running std", own) }));
  }
  if (layer.gamma) {
    place.append(plot("gamma", index, layer.gamma, { xName: "channel", yName: "gamma", describe: (i) => `channel ${channel[i]}\ngamma ${number(layer.gamma[i])}` + (layer.beta ? `\nbeta ${number(layer.beta[i])}` : "") }));
  }
}

for (const place of document.querySelectorAll(".plots")) draw(place, layers[Number(place.dataset.layer)]);

for (const cell of document.querySelectorAll(".cell")) {
  const layer = layers[Number(cell.dataset.layer)];
  const lines = [cell.getAttribute("aria-label"), `${layer.kind}, ${layer.channels} channels`];
  if (layer.distance !== undefined && layer.distance !== null) lines.push(`${number(layer.distance)} from the data's statistics`);
  if (layer.saturated) lines.push(`${number(100 * layer.saturated)} % of the outputs are beyond 4`);
  if (layer.share !== undefined && layer.share !== null) lines.push(`${number(layer.share)} of the gap`);
  const show = () => { const box = cell.getBoundingClientRect(); say(lines.join("\n"), box.left, box.bottom - 14); };
  cell.addEventListener("pointerenter", show);
  cell.addEventListener("focus", show);
  cell.addEventListener("pointerleave", hush);
  cell.addEventListener("blur", hush);
  cell.addEventListener("click", () => { document.getElementById(cell.hash.slice(1)).open = true; });
}

addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details.layer:not(.ok), details.finding")) one.open = true; });
