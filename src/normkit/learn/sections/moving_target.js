{
  const RUNS = NUMBERS.moving, EDGE = 1.83;  // tanh(1.83) = 0.95
  let playing = 0;

  function drawPercentiles(plot, run, layer, step, arms) {  // one axis for all arms of a start, so they compare
    const rows = run.map((seen) => seen.percentiles[layer]);
    const reach = Math.max(2.2, ...arms.flatMap((arm) => arm.flatMap((seen) => seen.percentiles[layer].map(Math.abs))));
    const tick = reach > 6 ? Math.floor(reach / 2) : 2;
    const c = chart(plot, 220), f = frame(c, {x: [0, 300], y: [-reach, reach], ticks: [0, 100, 200, 300], rows: [-tick, 0, tick], label: t("training step", "训练步"), side: t("input of the unit", "单元的输入")});
    const points = (k) => rows.map((row, i) => [f.x(10 * i), f.y(row[k])]);
    element(c.svg, "polygon", {points: [...points(0), ...points(2).reverse()].map((p) => p.join()).join(" "), fill: "var(--c1)", opacity: 0.18});
    for (const edge of [-EDGE, EDGE]) c.line(f.x(0), f.y(edge), f.x(300), f.y(edge), 4, {"stroke-dasharray": "3 4"});
    legend(c, [[4, t("beyond: saturated", "之外：饱和"), {"stroke-dasharray": "3 4"}]]);
    for (const k of [0, 2]) c.path(points(k), 1, {"stroke-width": 1.2});
    c.path(points(1), 1, {"stroke-width": 2.6});
    c.line(f.x(10 * step), 20, f.x(10 * step), 180, 2, {"stroke-width": 2});
    for (const k of [0, 1, 2]) c.dot(...points(k)[step], 5, 2);
  }

  function drawSaturated(plot, shares, layer) {
    const c = chart(plot, 150), f = frame(c, {x: [0.4, 6.6], y: [0, 1], ticks: [1, 2, 3, 4, 5, 6], rows: [0, 0.5, 1], label: t("layer", "层"), top: 20, bottom: 40});
    shares.forEach((v, i) => c.box(f.x(i + 1) - 17, f.y(v), 34, f.y(0) - f.y(v), i === layer ? 2 : 1, {rx: 3, opacity: i === layer ? 1 : 0.6}));
  }

  section("moving-target", {
    labels: {step: (v) => String(10 * v), layer: String},
    truth: () => 100 * RUNS["none 3"][0].saturated[2],
    actions: {
      play(place) {
        clearInterval(playing);
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) { set(place, "step", 30); return; }
        set(place, "step", 0);
        playing = setInterval(() => {
          const input = place.querySelector('[data-name="step"]');
          set(place, "step", Number(input.value) + 1);
          draw("moving-target");
          if (input.value === input.max) clearInterval(playing);
        }, 120);
      },
    },
    draw(s, place, plot) {
      const run = RUNS[`${s.norm} ${s.start}`], plain = RUNS[`batch ${s.start}`];
      drawPercentiles(plot("percentiles"), run, s.layer - 1, s.step, ["none", "batch", "noisy"].map((norm) => RUNS[`${norm} ${s.start}`]));
      drawSaturated(plot("saturated"), run[s.step].saturated, s.layer - 1);
      say(place, "loss", fixed(run[s.step].loss));
      say(place, "end", fixed(run[30].loss));
      say(place, "plain", fixed(plain[30].loss));
    },
  });
}
