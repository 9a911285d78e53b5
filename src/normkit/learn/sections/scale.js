{
  const {u, w, dy, grid} = NUMBERS.scale;
  const dot = (p, q) => total(p.map((v, i) => v * q[i])), length = (p) => Math.sqrt(dot(p, p));

  function measure(a, eps) {  // y, dL/du (as the gradient of the product times w), dL/d(aw), of s = a w u
    const s = u.map((row) => a * dot(row, w)), y = forward(s, 1, 0, eps), {dx} = backward(s, 1, 0, eps, dy);
    return {y, du: dx.map((v) => v * a), dw: w.map((_, k) => total(u.map((row, i) => row[k] * dx[i])))};
  }
  const off = (p, q) => Math.max(...p.map((v, i) => Math.abs(v - q[i]))) / Math.max(...q.map(Math.abs));

  function drawOutputs(plot, y, exact) {
    const c = chart(plot, 170), f = frame(c, {x: [0, y.length + 1], y: [-3, 3], ticks: [], rows: [-2, 0, 2], bottom: 14, side: "y"});
    exact.forEach((v, i) => c.dot(f.x(i + 1), f.y(v), 6.5, "card", {stroke: "var(--c5)", "stroke-width": 2}));
    y.forEach((v, i) => c.dot(f.x(i + 1), f.y(v), 4, 1));
  }

  function drawGradient(plot, s) {
    const c = chart(plot, 230), f = frame(c, {x: [0.01, 100], y: [1e-3, 1e4], ticks: [0.01, 0.1, 1, 10, 100], rows: [0.001, 0.1, 10, 1000], log: "xy", label: "a", side: "|dL/d(aw)|"});
    const one = length(measure(1, 0).dw), scales = Array.from({length: 81}, (_, i) => 10 ** (-2 + i / 20));
    c.path(scales.map((a) => [f.x(a), f.y(one / a)]), "muted", {"stroke-dasharray": "5 5", "stroke-width": 1.5});
    c.path(scales.map((a) => [f.x(a), f.y(length(measure(a, s.eps).dw))]), 1);
    for (const {a, length: l} of grid) c.dot(f.x(a), f.y(l), 2.6, 3);
    legend(c, [["muted", "1/a", {"stroke-dasharray": "5 4"}], [1, `ε = ${short(s.eps, 2)}`], [3, "normkit, 10⁻⁵", {"stroke-dasharray": "4 3"}]]);
    c.dot(f.x(s.a), f.y(length(measure(s.a, s.eps).dw)), 7, 2);
  }

  section("scale", {
    labels: {},
    truth: () => 0.01,
    actions: {small: (place) => { set(place, "a", -2); set(place, "eps", -3); }},
    draw(s, place, plot) {
      const exact = measure(1, 0), now = measure(s.a, s.eps), long = w.map((v) => v * s.a), l = length(now.dw);
      drawOutputs(plot("outputs"), now.y, exact.y);
      drawGradient(plot("gradient"), s);
      const wrong = off(now.y, exact.y), percent = (v) => (v < 1e-4 ? short(v, 2) : `${short(100 * v, 2)} %`);
      say(place, "output", percent(wrong), wrong > 0.01 ? "bad" : "good");
      say(place, "input", percent(off(now.du, exact.du)), off(now.du, exact.du) > 0.01 ? "bad" : "good");
      say(place, "scaled", short(s.a * l, 4));
      say(place, "angle", `${fixed(Math.acos(dot(long, now.dw) / length(long) / l) * 180 / Math.PI, 1)}°`);
      fromLibrary(place, {u, w, dy, a: s.a, eps: s.eps}, (answer) => apart([...now.y, l], [...answer.y, answer.length]));
      const after = long.map((v, i) => v - s.rate * now.dw[i]);
      say(place, "turn", `${short(Math.acos(Math.min(1, dot(long, after) / length(long) / length(after))) * 180 / Math.PI, 2)}°`);
    },
  });
}
