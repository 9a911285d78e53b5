{
  const list = (values) => values.map((v) => fixed(v)).join("  ");
  const NODES = [["x", 0, 1], ["μ", 1, 2], ["σ²", 2, 2], ["x̂", 3, 1], ["γ", 3, 2], ["y", 4, 1], ["β", 4, 2]];
  const EDGES = [["x", "μ"], ["x", "σ²"], ["μ", "σ²"], ["μ", "x̂"], ["σ²", "x̂"], ["x", "x̂"], ["x̂", "y"], ["γ", "y"], ["β", "y"]];
  const LIT = {1: ["β"], 2: ["γ"], 3: ["x̂"], 4: ["σ²"], 5: ["μ"], 6: ["x"], 7: ["x"]};  // whose gradient a step computes

  function drawGraph(plot, step) {
    const c = chart(plot, 170), at = {};
    for (const [name, column, row] of NODES) at[name] = [26 + column * (c.width - 52) / 4, row === 1 ? 40 : 132];
    for (const [from, to] of EDGES) {
      const now = LIT[step].includes(from), [x1, y1] = at[from], [x2, y2] = at[to], l = Math.hypot(x2 - x1, y2 - y1), k = 26 / l;
      const a = [x1 + k * (x2 - x1), y1 + k * (y2 - y1)], b = [x2 - k * (x2 - x1), y2 - k * (y2 - y1)];
      if (now) c.arrow(...b, ...a, 2); else c.line(...a, ...b, "grid", {"stroke-width": 2});
    }
    for (const [name] of NODES) {
      const [x, y] = at[name], now = LIT[step].includes(name);
      c.dot(x, y, 21, now ? 2 : "soft", {stroke: now ? "var(--c2)" : "var(--line)"});
      c.text(x, y + 6, name, {"text-anchor": "middle", style: `font-size:17px;font-style:italic;fill:var(--${now ? "card" : "ink"})`});
    }
  }

  function finite(x, gamma, eps, dy, step) {  // central differences, fourth order
    const loss = (v) => total(forward(v, gamma, 0, eps).map((y, i) => y * dy[i]));
    return x.map((_, k) => {
      const h = step, at = (by) => loss(x.map((v, i) => (i === k ? v + by : v)));
      return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    });
  }

  section("backward", {
    labels: {step: String, x2: (v) => fixed(v, 1), dy1: (v) => fixed(v, 1), gamma: (v) => fixed(v, 1)},
    truth: () => Math.abs(total(backward([1, 2, 4, 9], 1, 0, 1e-5, [1, 0, 0, 0]).dx)) < 1e-12 ? 0 : NaN,
    actions: {},
    draw(s, place, plot) {
      const x = typed(place, "x", 2, 8) ?? [1, s.x2, 4, 9], start = [s.dy1, -0.5, 0.3, 0.8];
      const dy = typed(place, "dy", x.length, x.length) ?? x.map((_, i) => start[i % 4]), wrong = s.wrong === "right" ? "" : s.wrong;
      const made = backwardSteps(x, s.gamma, 0, s.eps, dy, wrong), {variance} = moments(x), m = x.length;
      const rstd = 1 / Math.sqrt(variance + s.eps), xhat = forward(x, 1, 0, s.eps), dgamma = total(xhat.map((v, i) => v * dy[i]));
      const collapsed = dy.map((v, i) => s.gamma * rstd * (v - total(dy) / m - xhat[i] * dgamma / m));
      drawGraph(plot("graph"), s.step);
      for (const item of place.querySelectorAll("[data-step]")) {
        item.classList.toggle("now", Number(item.dataset.step) === s.step);
        item.classList.toggle("later", Number(item.dataset.step) > s.step);
      }
      for (const name of ["dbeta", "dgamma", "dvar"]) say(place, name, `= ${fixed(made[name], 4)}`);
      say(place, "dmean", `= ${fixed(made.dmean, 4)} ${t("(second sum: 0)", "（第二个和：0）")}`);
      for (const name of ["dxhat", "dx"]) say(place, name, `= ${list(made[name])}`);
      say(place, "collapsed", `= ${list(collapsed)}`);
      const h = 1e-3 / rstd, truth = finite(x, s.gamma, s.eps, dy, h), away = Math.max(...truth.map((v, i) => Math.abs(v - made.dx[i])));
      const rounding = 1e-7 + 1e-15 * Math.max(...x.map(Math.abs)) / h;  // x + h is rounded
      const right = away < rounding * (1 + Math.max(...truth.map(Math.abs)));
      const sum = total(made.dx);
      say(place, "check", short(away, 2), right ? "good" : "bad");
      say(place, "sum", Math.abs(sum) < 1e-12 ? "0" : short(sum), Math.abs(sum) < 1e-12 ? "good" : "bad");
      fromLibrary(place, {x, gamma: s.gamma, eps: s.eps, dy}, (answer) => {
        const {words, good} = apart([...made.dx, made.dgamma, made.dbeta], [...answer.dx, answer.dgamma, answer.dbeta]);
        return {words: `dx = ${list(answer.dx)}  (${words})`, good};
      });
      say(place, "word", right ? t("right", "正确") : t("wrong", "错误"), right ? "good" : "bad");
    },
  });
}
