{
  const {gains, activations, norms} = NUMBERS.gradients, NONE = -320;  // null: the gradient is 0 in float64
  const curveOf = (norm, act, gain) => norms[norm][activations.indexOf(act)][gain].map((v) => v ?? NONE);

  function drawStrip(plot, curve, other, layer) {
    const c = chart(plot, 290), cell = (c.width - 64) / curve.length;
    curve.forEach((v, i) => {
      const strength = Math.min(1, Math.abs(v) / 8), x = 50 + i * cell;
      c.box(x, 8, cell - 1, 40, "soft");
      c.box(x, 8, cell - 1, 40, v < 0 ? 1 : 2, {opacity: strength, stroke: i === layer ? "var(--ink)" : "none", "stroke-width": 2});
      if (i === layer) c.box(x, 8, cell - 1, 40, 5, {fill: "none", "fill-opacity": 0, stroke: "var(--ink)", "stroke-width": 2});
    });
    const f = frame(c, {x: [0.5, curve.length + 0.5], y: [-24, 24], ticks: [1, 5, 10, 15, 20, 25, 30], rows: [-20, -10, 0, 10, 20], top: 74, label: t("layer", "层"), show: (v) => String(v).replace("-", "−")});
    c.text(4, 66, "log₁₀", {class: "muted"});
    const points = (values) => values.map((v, i) => [f.x(i + 1), f.y(v)]);
    c.path(points(other), "muted", {"stroke-dasharray": "5 5", "stroke-width": 1.5});
    c.path(points(curve), 1);
    c.dot(...points(curve)[layer], 6, 2);
  }

  section("gradients", {
    labels: {gain: (v) => fixed(gains[v], 2), layer: String},
    truth: () => 10 ** curveOf("none", "sigmoid", gains.reduce((best, g, i) => (Math.abs(g - 1) < Math.abs(gains[best] - 1) ? i : best), 0))[0],
    actions: {},
    draw(s, place, plot) {
      const curve = curveOf(s.norm, s.act, s.gain), other = curveOf(s.norm === "none" ? "batch" : "none", s.act, s.gain);
      drawStrip(plot("strip"), curve, other, s.layer - 1);
      const power = (v) => (v <= NONE ? "0" : short(10 ** v, 2)), quality = Math.abs(curve[0]) < 1.5 ? "good" : Math.abs(curve[0]) > 5 ? "bad" : "";
      say(place, "first", power(curve[0]), quality);
      say(place, "here", power(curve[s.layer - 1]));
      say(place, "factor", short(10 ** (curve[0] / (curve.length - 1)), 3));
    },
  });
}
