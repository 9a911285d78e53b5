// Plain SVG. A plot is as wide as its place, so words keep their size on a phone; colours come from the page's styles.

function chart(place, height, least = 250) {
  const width = Math.max(least, Math.min(760, place.clientWidth || 620));
  place.replaceChildren();
  const svg = element(place, "svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"});
  const ink = (colour) => (typeof colour === "number" ? `var(--c${colour})` : colour ? `var(--${colour})` : "var(--ink)");
  return {
    svg, width, height,
    line: (x1, y1, x2, y2, colour, more = {}) => element(svg, "line", {x1, y1, x2, y2, stroke: ink(colour), "stroke-width": 1.5, ...more}),
    dot: (cx, cy, r, colour, more = {}) => element(svg, "circle", {cx, cy, r, fill: ink(colour), ...more}),
    box: (x, y, w, h, colour, more = {}) => element(svg, "rect", {x, y, width: Math.max(0, w), height: Math.max(0, h), fill: ink(colour), ...more}),
    text: (x, y, words, more = {}) => { element(svg, "text", {x, y, ...more}).textContent = words; },
    path: (points, colour, more = {}) => element(svg, "path", {
      d: points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join(""), fill: "none", stroke: ink(colour),
      "stroke-width": 2, "stroke-linejoin": "round", ...more}),
    arrow: (x1, y1, x2, y2, colour, more = {}) => {
      element(svg, "line", {x1, y1, x2, y2, stroke: ink(colour), "stroke-width": 4, ...more});
      const turn = Math.atan2(y2 - y1, x2 - x1), side = (a) => `${x2 - 11 * Math.cos(turn + a)},${y2 - 11 * Math.sin(turn + a)}`;
      element(svg, "polygon", {points: `${x2},${y2} ${side(0.5)} ${side(-0.5)}`, fill: ink(colour)});
    },
  };
}

function element(parent, name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "stroke" || key === "fill") made.style[key] = value; else made.setAttribute(key, value);
  }
  parent.append(made);
  return made;
}

function scaled(low, high, from, to) {  // the nearest end for what lies outside
  return (v) => from + (to - from) * Math.min(1, Math.max(0, (v - low) / (high - low)));
}

// A frame with axes: {x, y} place values. `ticks` and `rows` are the labelled values; `log` axes take powers of ten.
function frame(c, {x, y, ticks, rows, label = "", side = "", top = 24, bottom = 40, left = 50, right = 14, log = "", show = short}) {
  const to = (axis) => (v) => (log.includes(axis) ? Math.log10(Math.max(v, 1e-300)) : v);
  const [tx, ty] = [to("x"), to("y")];
  const px = scaled(tx(x[0]), tx(x[1]), left, c.width - right), py = scaled(ty(y[0]), ty(y[1]), c.height - bottom, top);
  for (const v of rows) {
    c.line(left, py(ty(v)), c.width - right, py(ty(v)), "grid", {"stroke-width": 1});
    c.text(left - 7, py(ty(v)) + 4, show(v), {"text-anchor": "end", class: "muted"});
  }
  for (const v of ticks) c.text(px(tx(v)), c.height - bottom + 17, show(v), {"text-anchor": "middle", class: "muted"});
  c.text((left + c.width - right) / 2, c.height - 4, label, {"text-anchor": "middle", class: "muted"});
  c.text(4, 13, side, {class: "muted"});
  return {x: (v) => px(tx(v)), y: (v) => py(ty(v))};
}

// What the colours mean, at a plot's upper right: in one line, or one below the other where that is too long.
function legend(c, entries) {
  const size = (words) => [...words].reduce((sum, sign) => sum + (sign > "\u2e80" ? 13 : 8), 0) + 40;
  const long = entries.reduce((sum, [, words]) => sum + size(words), 0) > c.width - 110;
  let right = c.width - 14, y = 13;
  for (const [colour, words, more] of [...entries].reverse()) {
    c.text(right, y, words, {"text-anchor": "end"});
    c.line(right - size(words) + 14, y - 4, right - size(words) + 32, y - 4, colour, {"stroke-width": 3, ...more});
    if (long) y += 16; else right -= size(words);
  }
}

const RAISED = {"-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹"};

function short(v, digits = 3) {  // three digits, powers of ten where they are shorter, a real minus sign
  if (!Number.isFinite(v)) return Number.isNaN(v) ? "–" : v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e-3 && size < 1e5) return String(Number(v.toPrecision(digits))).replace("-", "−");
  const [mantissa, power] = v.toExponential(digits - 1).split("e");
  const raised = String(Number(power)).replace(/./g, (d) => RAISED[d]);
  const lead = String(Number(mantissa)).replace("-", "−");
  return lead === "1" ? `10${raised}` : `${lead}·10${raised}`;
}

function fixed(v, digits = 3) {
  return Number.isFinite(v) ? (v < 0 ? "−" : "") + Math.abs(v).toFixed(digits) : short(v);
}
