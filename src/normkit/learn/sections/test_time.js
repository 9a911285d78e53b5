{
  const STEPS = 200, PRIOR = 16, LAST = 60, TEST = 250;
  let seed = 1, used = "running";

  function generator(start) {  // mulberry32: equal seeds give equal batches
    let state = start >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let v = Math.imul(state ^ (state >>> 15), state | 1);
      v = (v + Math.imul(v ^ (v >>> 7), v | 61)) ^ v;
      return ((v ^ (v >>> 14)) >>> 0) / 4294967296;
    };
    return {uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform())};
  }

  // Two classes at centre - 1 and centre + 1 with deviation 0.6. The weights move the centre from 0 to `drift`.
  const SPREAD = 0.6, centre = (drift, k) => drift * Math.min(1, k / (0.9 * STEPS));

  function train({batch, drift, sorted}, alpha) {
    const {uniform, normal} = generator(seed), means = [], variances = [], course = [];
    let mean = 0, variance = 1;
    for (let k = 0; k < STEPS; k++) {
      const late = sorted === "sorted" && k >= STEPS - LAST, half = k < STEPS - LAST / 2 ? -1 : 1;
      const x = Array.from({length: batch}, () => centre(drift, k) + (late ? half : uniform() < 0.5 ? -1 : 1) + SPREAD * normal());
      const found = moments(x), unbiased = found.variance * batch / (batch - 1);
      means.push(found.mean); variances.push(unbiased);
      mean = (1 - alpha) * mean + alpha * found.mean;
      variance = (1 - alpha) * variance + alpha * unbiased;
      course.push(mean);
    }
    const final = (values) => total(values.slice(-LAST)) / LAST;
    return {means, course, running: [mean, variance], average: [final(means), final(variances)], exact: [drift, 1 + SPREAD ** 2]};
  }

  const below = (z) => 1 / (1 + Math.exp(-1.5976 * z - 0.070566 * z ** 3));  // the normal distribution, to 2e-4
  const error = (bias) => (below(-(1 - bias) / SPREAD) + below(-(1 + bias) / SPREAD)) / 2;

  function drawCourse(plot, made, drift) {
    const c = chart(plot, 220), f = frame(c, {x: [0, STEPS], y: [-2, 5], ticks: [0, 50, 100, 150, 200], rows: [-2, 0, 2, 4], label: t("training step", "训练步"), side: t("mean", "均值")});
    made.means.forEach((v, k) => c.dot(f.x(k), f.y(v), 1.8, 5, {opacity: 0.55}));
    c.line(f.x(0), f.y(drift), f.x(STEPS), f.y(drift), 3, {"stroke-dasharray": "6 5", "stroke-width": 2});
    c.path(made.course.map((v, k) => [f.x(k), f.y(v)]), 1);
    c.dot(f.x(STEPS), f.y(made.running[0]), 6, 1);
  }

  function drawErrors(plot, rows, best) {
    const c = chart(plot, 30 * rows.length + 34), left = Math.min(190, c.width * 0.42), at = scaled(0, 0.5, left, c.width - 60);
    rows.forEach(([name, words, value], i) => {
      const y = 10 + 30 * i;
      c.text(left - 10, y + 15, words, {"text-anchor": "end", style: name === used ? "font-weight:700" : ""});
      c.box(left, y, at(value) - left, 21, name === used ? 2 : 1, {rx: 3, opacity: name === used ? 1 : 0.55});
      c.text(at(value) + 7, y + 15, `${fixed(100 * value, 1)} %`);
    });
    c.line(at(best), 4, at(best), 30 * rows.length + 8, "muted", {"stroke-dasharray": "3 3"});
    c.text(at(best), 30 * rows.length + 26, `${t("best", "最好")} ${fixed(100 * best, 1)} %`, {"text-anchor": "middle", class: "muted"});
  }

  section("test-time", {
    labels: {batch: String, drift: (v) => fixed(v, 1), shift: (v) => fixed(v, 1)},
    truth: () => Math.ceil(Math.log(0.01) / Math.log(0.9)),
    actions: {
      shuffle: () => { seed += 1; },
      recalibrate: () => { used = used === "exact" ? "running" : "exact"; },
      adapt: () => { used = used === "adapt" ? "running" : "adapt"; },
    },
    draw(s, place, plot) {
      const alpha = s.convention === "torch" ? s.momentum : 1 - s.momentum, made = train(s, alpha);
      const target = s.drift + s.shift, share = PRIOR / (PRIOR + TEST);
      const statistics = {running: made.running[0], average: made.average[0], exact: made.exact[0], adapt: share * made.exact[0] + (1 - share) * target};
      const names = {running: t("running average", "滑动平均"), average: t("average of batches", "批次平均"), exact: "recalibrate", adapt: "adapt(prior=16)"};
      drawCourse(plot("course"), made, s.drift);
      drawErrors(plot("errors"), Object.entries(statistics).map(([name, mean]) => [name, names[name], error(mean - target)]), error(0));
      for (const name of ["recalibrate", "adapt"]) place.querySelector(`[data-do="${name}"]`).setAttribute("aria-pressed", String(used === (name === "adapt" ? "adapt" : "exact")));
      const value = error(statistics[used] - target);
      say(place, "used", `${names[used]}: ${fixed(100 * value, 1)} %`, value < error(0) + 0.01 ? "good" : value > error(0) + 0.05 ? "bad" : "");
      for (const name of ["running", "average", "exact"]) say(place, name, made[name].map((v) => fixed(v, 2)).join(", "));
    },
  });
}
