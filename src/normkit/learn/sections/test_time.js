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

  // The batches: drawn, or the reader's own values in their order.
  function batchesOf({batch, drift, sorted}) {
    if (NUMBERS.values) {
      const count = Math.min(STEPS, Math.floor(NUMBERS.values.length / batch));
      return Array.from({length: count}, (_, k) => NUMBERS.values.slice(k * batch, (k + 1) * batch));
    }
    const {uniform, normal} = generator(seed);
    return Array.from({length: STEPS}, (_, k) => {
      const late = sorted === "sorted" && k >= STEPS - LAST, half = k < STEPS - LAST / 2 ? -1 : 1;
      const value = () => centre(drift, k) + (late ? half : uniform() < 0.5 ? -1 : 1) + SPREAD * normal();
      return Array.from({length: batch}, () => Math.round(1e6 * value()) / 1e6);
    });
  }

  function train(batches, drift, alpha) {
    const means = [], variances = [], course = [];
    let mean = 0, variance = 1;
    for (const x of batches) {
      const found = moments(x), unbiased = found.variance * x.length / (x.length - 1);
      means.push(found.mean); variances.push(unbiased);
      mean = (1 - alpha) * mean + alpha * found.mean;
      variance = (1 - alpha) * variance + alpha * unbiased;
      course.push(mean);
    }
    const last = Math.min(LAST, batches.length), final = (values) => total(values.slice(-last)) / last;
    const whole = moments(batches.slice(-last).flat()), exact = NUMBERS.values ? [whole.mean, whole.variance] : [drift, 1 + SPREAD ** 2];
    return {means, course, running: [mean, variance], average: [final(means), final(variances)], exact};
  }

  const below = (z) => 1 / (1 + Math.exp(-1.5976 * z - 0.070566 * z ** 3));  // the normal distribution, to 2e-4
  const error = (bias) => (below(-(1 - bias) / SPREAD) + below(-(1 + bias) / SPREAD)) / 2;

  function drawCourse(plot, made, exact) {
    const count = made.means.length, own = NUMBERS.values !== null, all = [...made.means, exact];
    const reach = own ? [Math.min(...all, 0), Math.max(...all, 0)] : [-2, 5], middle = (reach[0] + reach[1]) / 2;
    const c = chart(plot, 220), f = frame(c, {x: [0, count], y: reach, ticks: own ? [0, count] : [0, 50, 100, 150, 200], rows: own ? [reach[0], middle, reach[1]] : [-2, 0, 2, 4], label: t("training step", "训练步"), side: t("mean", "均值"), show: (v) => short(v, 2)});
    made.means.forEach((v, k) => c.dot(f.x(k), f.y(v), 1.8, 5, {opacity: 0.55}));
    c.line(f.x(0), f.y(exact), f.x(count), f.y(exact), 3, {"stroke-dasharray": "6 5", "stroke-width": 2});
    c.path(made.course.map((v, k) => [f.x(k), f.y(v)]), 1);
    c.dot(f.x(count), f.y(made.running[0]), 6, 1);
  }

  function drawErrors(plot, rows, best) {
    const c = chart(plot, 30 * rows.length + 34), left = Math.min(190, c.width * 0.42), at = scaled(0, NUMBERS.values ? Math.max(0.5, ...rows.map((row) => row[2])) : 0.5, left, c.width - 60);
    rows.forEach(([name, words, value], i) => {
      const y = 10 + 30 * i;
      c.text(left - 10, y + 15, words, {"text-anchor": "end", style: name === used ? "font-weight:700" : ""});
      c.box(left, y, at(value) - left, 21, name === used ? 2 : 1, {rx: 3, opacity: name === used ? 1 : 0.55});
      c.text(at(value) + 7, y + 15, percent(value));
    });
    c.line(at(best), 4, at(best), 30 * rows.length + 8, "muted", {"stroke-dasharray": "3 3"});
    c.text(at(best), 30 * rows.length + 26, `${t("best", "最好")} ${percent(best)}`, {"text-anchor": "middle", class: "muted"});
  }

  const percent = (v) => `${v < 10 ? fixed(100 * v, 1) : short(100 * v)} %`;

  section("test-time", {
    labels: {batch: String, drift: (v) => fixed(v, 1), shift: (v) => fixed(v, 1)},
    truth: () => Math.ceil(Math.log(0.01) / Math.log(0.9)),
    actions: {
      shuffle: () => { seed += 1; },
      recalibrate: () => { used = used === "exact" ? "running" : "exact"; },
      adapt: () => { used = used === "adapt" ? "running" : "adapt"; },
    },
    draw(s, place, plot) {
      const alpha = s.convention === "torch" ? s.momentum : 1 - s.momentum, batches = batchesOf(s), made = train(batches, s.drift, alpha);
      const deviation = Math.sqrt(made.exact[1]), target = made.exact[0] + s.shift * (NUMBERS.values ? deviation : 1), share = PRIOR / (PRIOR + TEST);
      const statistics = {running: made.running[0], average: made.average[0], exact: made.exact[0], adapt: share * made.exact[0] + (1 - share) * target};
      const names = {running: t("running average", "滑动平均"), average: t("average of batches", "批次平均"), exact: "recalibrate", adapt: "adapt(prior=16)"};
      // of own values nobody knows the classes: there it is how far the mean is off, in deviations
      const cost = NUMBERS.values ? (bias) => Math.abs(bias) / (deviation || 1) : error, best = cost(0);
      drawCourse(plot("course"), made, made.exact[0]);
      drawErrors(plot("errors"), Object.entries(statistics).map(([name, mean]) => [name, names[name], cost(mean - target)]), best);
      for (const name of ["recalibrate", "adapt"]) place.querySelector(`[data-do="${name}"]`).setAttribute("aria-pressed", String(used === (name === "adapt" ? "adapt" : "exact")));
      const value = cost(statistics[used] - target);
      say(place, "used", `${names[used]}: ${percent(value)}`, value < best + 0.01 ? "good" : value > best + 0.05 ? "bad" : "");
      for (const name of ["running", "average", "exact"]) say(place, name, made[name].map((v) => (NUMBERS.values ? short(v) : fixed(v, 2))).join(", "));
      place.querySelector("[data-own]").hidden = !NUMBERS.values;
      fromLibrary(place, {values: batches.flat(), batch: s.batch, momentum: alpha}, (answer) => {
        const {words, good} = apart([...made.running, ...made.average], [...answer.running, ...answer.average]);
        return {words: `${words}; recalibrate: ${answer.exact.map((v) => short(v)).join(", ")}`, good};
      });
    },
  });
}
