{
  const {rates, batches, starts, norms, every, curves} = NUMBERS.race, TRAINS = 20;
  let running = 0;

  const curveOf = (norm, s, rate = s.rate) => curves[((norms.indexOf(norm) * starts.length + s.start) * batches.length + s.batch) * rates.length + rate];
  const last = (curve) => curve[curve.length - 1];
  const largest = (norm, s) => Math.max(0, ...rates.filter((_, i) => last(curveOf(norm, s, i)) < TRAINS));

  function drawCurves(plot, mine, rival, step, name) {
    const c = chart(plot, 230), f = frame(c, {x: [0, 200], y: [0, 100], ticks: [0, 50, 100, 150, 200], rows: [0, 25, 50, 75, 100], label: t("training step", "训练步"), side: t("error, %", "误差，%")});
    for (const [curve, colour] of [[rival, 2], [mine, 1]]) {
      const points = curve.map((v, i) => [f.x(i * every), f.y(v)]);
      c.path(points, colour, {opacity: 0.22});
      c.path(points.slice(0, step + 1), colour, {"stroke-width": 3});
      c.dot(...points[step], 6, colour);
    }
    legend(c, [[1, "BatchNorm"], [2, name]]);
  }

  function drawRates(plot, s, name) {
    const c = chart(plot, 230), f = frame(c, {x: [rates[0], rates[7]], y: [0, 100], ticks: [0.01, 0.1, 1, 10], rows: [0, 25, 50, 75, 100], log: "x", label: t("rate", "学习率"), side: t("final error, %", "最终误差，%")});
    for (const [norm, colour] of [[s.rival, 2], ["batch", 1]]) {
      const points = rates.map((rate, i) => [f.x(rate), f.y(last(curveOf(norm, s, i)))]);
      c.path(points, colour);
      points.forEach(([x, y], i) => (colour === 1 ? c.dot(x, y, i === s.rate ? 7 : 4, 1) : c.box(x - 4, y - 4, i === s.rate ? 12 : 8, i === s.rate ? 12 : 8, 2)));
    }
    legend(c, [[1, "BatchNorm"], [2, name]]);
    c.line(f.x(rates[0]), f.y(TRAINS), f.x(rates[7]), f.y(TRAINS), 3, {"stroke-dasharray": "3 4"});
  }

  section("race", {
    labels: {rate: (v) => short(rates[v]), batch: (v) => String(batches[v]), start: (v) => short(starts[v]), step: (v) => String(v * every)},
    truth: () => { const s = {start: 1, batch: 1}; return largest("batch", s) / largest("none", s); },
    actions: {
      run(place) {
        clearInterval(running);
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) { set(place, "step", 10); return; }
        set(place, "step", 1);
        running = setInterval(() => {
          const input = place.querySelector('[data-name="step"]');
          set(place, "step", Number(input.value) + 1);
          draw("race");
          if (input.value === input.max) clearInterval(running);
        }, 180);
      },
    },
    draw(s, place, plot) {
      const mine = curveOf("batch", s), rival = curveOf(s.rival, s), a = mine[s.step], b = rival[s.step];
      const name = s.rival === "none" ? t("no norm", "无归一化") : "GroupNorm";
      drawCurves(plot("curves"), mine, rival, s.step, name);
      drawRates(plot("rates"), s, name);
      say(place, "name", name);
      say(place, "batch", `${fixed(a, 1)} %`);
      say(place, "rival", `${fixed(b, 1)} %`);
      say(place, "ahead", Math.abs(a - b) < 2 ? t("a tie", "平手") : a < b ? "BatchNorm" : name);
      say(place, "largest", `${short(largest("batch", s))} / ${short(largest(s.rival, s))}`);
    },
  });
}
