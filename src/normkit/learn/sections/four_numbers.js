{
  const START = NUMBERS.four.x, NAMES = ["x1", "x2", "x3", "x4"];
  const list = (values) => values.map((v) => fixed(v)).join("  ");
  let held = null;

  function change(place, state, by) {
    const next = NAMES.map((name) => by(state[name]));
    if (next.every((v) => Math.abs(v) <= 10)) NAMES.forEach((name, i) => set(place, name, next[i]));
  }

  function drawDots(place, plot, s, x, y) {
    const c = chart(plot, 250), at = scaled(-10, 10, 18, c.width - 18);
    const reach = [5, 10].find((v) => y.every((out) => Math.abs(out) <= v)) ?? 15, under = scaled(-reach, reach, 18, c.width - 18);
    const {mean, variance} = moments(x), deviation = Math.sqrt(variance);
    c.box(at(mean - deviation), 34, at(mean + deviation) - at(mean - deviation), 56, 1, {opacity: 0.13, rx: 6});
    c.line(at(mean), 28, at(mean), 96, 1);
    c.text(at(mean), 20, `μ = ${fixed(mean, 2)}`, {"text-anchor": "middle"});
    for (const [row, low, high, place_] of [[62, -10, 10, at], [196, -reach, reach, under]]) {
      c.line(18, row, c.width - 18, row, "grid");
      for (let v = low; v <= high; v += 5) c.text(place_(v), row + 42, short(v), {"text-anchor": "middle", class: "muted"});
    }
    c.text(18, 13, "x", {class: "muted"}); c.text(18, 160, "y", {class: "muted"});
    x.forEach((v, i) => {
      c.line(at(v), 62, under(y[i]), 196, i + 1, {opacity: 0.45, "stroke-dasharray": "3 4"});
      c.dot(under(y[i]), 196, 8, i + 1, {stroke: "var(--card)", "stroke-width": 2});
      const handle = c.dot(at(v), 62, 12, i + 1, {stroke: "var(--card)", "stroke-width": 2, class: "handle"});
      c.text(at(v), 66, String(i + 1), {"text-anchor": "middle", style: "fill:var(--card);font-weight:700;pointer-events:none"});
      handle.addEventListener("pointerdown", (event) => { held = i; event.preventDefault(); });
    });
  }

  function drag(place, event) {
    if (held === null) return;
    const box = place.querySelector('[data-plot="dots"] svg').getBoundingClientRect();
    const v = Math.round(scaled(18, box.width - 18, -10, 10)(event.clientX - box.left) * 10) / 10;
    set(place, NAMES[held], v);
    moved(place, NAMES[held]);
    draw("four-numbers");
  }

  section("four-numbers", {
    labels: {x1: (v) => fixed(v, 1), x2: (v) => fixed(v, 1), x3: (v) => fixed(v, 1), x4: (v) => fixed(v, 1)},
    truth: () => Math.abs(forward(START.map((v) => 10 * v), 1, 0, 1e-5)[3] - forward(START, 1, 0, 1e-5)[3]),
    actions: {
      shift: (place, s) => change(place, s, (v) => v + 1),
      stretch: (place, s) => change(place, s, (v) => v / 2),
      reset: (place) => {
        NAMES.forEach((name, i) => set(place, name, START[i]));
        set(place, "gamma", 1); set(place, "beta", 0); set(place, "eps", -5);
      },
    },
    draw(s, place, plot) {
      const x = NAMES.map((name) => s[name]), {mean, variance} = moments(x);
      const y = forward(x, s.gamma, s.beta, s.eps);
      drawDots(place, plot("dots"), s, x, y);
      say(place, "mean", `= ${fixed(mean)}`);
      say(place, "variance", `= ${fixed(variance)}`);
      say(place, "xhat", `= ${list(forward(x, 1, 0, s.eps))}`);
      say(place, "y", `= ${list(y)}`);
      const own = NUMBERS.four, atStart = x.every((v, i) => v === own.x[i]) && s.gamma === 1 && s.beta === 0 && Math.abs(s.eps - own.eps) < 1e-12;
      say(place, "library", atStart ? `BatchNorm1d: ${list(own.y)}` : t("has answered for 1 2 4 9, γ 1, β 0, ε 10⁻⁵; run --serve for free values", "已算好 1 2 4 9（γ=1，β=0，ε=10⁻⁵）；任意数值请用 --serve"));
      fromLibrary(place, {x, gamma: s.gamma, beta: s.beta, eps: s.eps}, (answer) => {
        const {words, good} = apart(y, answer.y);
        return {words: `BatchNorm1d: ${list(answer.y)}  (${words})`, good};
      });
    },
  });
  const place = document.getElementById("four-numbers");
  addEventListener("pointermove", (event) => drag(place, event));
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { held = null; });
}
