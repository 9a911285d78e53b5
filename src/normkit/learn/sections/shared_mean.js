{
  const {features, size, outputs} = NUMBERS.maps;  // features[n][c]: one map as a flat list
  const CHANNELS = 8, AREA = size * size, EPS = 1e-5;
  let order = [...Array(CHANNELS).keys()];
  const groupsOf = (v) => 2 ** v;

  // Does cell (n, c) share the statistics of the cell (image, channel)? Channels are counted after the shuffle.
  function together(norm, groups, n, c, image, channel) {
    const per = CHANNELS / groups;
    return {
      batch: c === channel, layer: n === image, instance: n === image && c === channel,
      group: n === image && Math.floor(c / per) === Math.floor(channel / per),
    }[norm];
  }

  function normalized(norm, groups, batch, image) {  // the image's maps after the norm, one list per channel
    return order.map((_, channel) => {
      const mine = features[image][order[channel]], all = [];
      let from = 0;
      for (let n = 0; n < batch; n++) for (let c = 0; c < CHANNELS; c++) {
        if (!together(norm, groups, n, c, image, channel)) continue;
        if (n === image && c === channel) from = all.length;
        all.push(...features[n][order[c]]);
      }
      return {y: forward(all, 1, 0, EPS).slice(from, from + mine.length), all};
    });
  }

  function drawBlock(plot, s, groups, image, channel) {
    const c = chart(plot, 34 + 30 * s.batch), width = Math.min(62, (c.width - 60) / CHANNELS);
    c.text(4, 14, "N", {class: "muted"});
    for (let k = 0; k < CHANNELS; k++) c.text(44 + (k + 0.5) * width, 14, `C${order[k] + 1}`, {"text-anchor": "middle", class: "muted"});
    for (let n = 0; n < s.batch; n++) {
      c.text(4, 42 + 30 * n, String(n + 1), {class: "muted"});
      for (let k = 0; k < CHANNELS; k++) {
        const here = n === image && k === channel, shared = together(s.norm, groups, n, k, image, channel);
        c.box(44 + k * width + 2, 24 + 30 * n, width - 4, 25, shared ? 1 : "soft", {rx: 5, opacity: shared && !here ? 0.55 : 1, stroke: here ? "var(--c2)" : "var(--line)", "stroke-width": here ? 3 : 1});
      }
    }
  }

  function drawMaps(plot, before, after) {
    const gap = 5, wide = plot.clientWidth > 560, per = wide ? 8 : 4, bands = 8 / per;
    const c0 = Math.max(250, Math.min(760, plot.clientWidth || 620)), cell = (c0 - gap * (per - 1)) / per;
    const c = chart(plot, bands * (2 * cell + 3 * gap + 8));
    const grey = (values, all) => {
      const low = Math.min(...all), high = Math.max(...all);
      return values.map((v) => Math.round(255 * (v - low) / (high - low || 1)));
    };
    const paint = (values, x, y) => {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = size;
      const context = canvas.getContext("2d"), data = context.createImageData(size, size);
      values.forEach((v, i) => data.data.set([v, v, v, 255], 4 * i));
      context.putImageData(data, 0, 0);
      element(c.svg, "image", {x, y, width: cell, height: cell, href: canvas.toDataURL(), style: "image-rendering:pixelated"});
    };
    for (let k = 0; k < CHANNELS; k++) {
      const x = (k % per) * (cell + gap), y = Math.floor(k / per) * (2 * cell + 3 * gap + 8);
      paint(grey(before[k], before.flat()), x, y);
      paint(grey(after[k], after.flat()), x, y + cell + gap);
    }
  }

  section("shared-mean", {
    labels: {groups: (v) => String(groupsOf(v)), batch: String, image: String, channel: String},
    truth: () => 4 * 28 * 28,
    actions: {
      shuffle: () => {
        const before = order.join();
        while (order.join() === before) order = order.map((v) => [Math.random(), v]).sort((a, b) => a[0] - b[0]).map(([, v]) => v);
      },
    },
    draw(s, place, plot) {
      const groups = groupsOf(s.groups), image = Math.min(s.image, s.batch) - 1, channel = s.channel - 1;
      const made = normalized(s.norm, groups, s.batch, image), {mean, variance} = moments(made[channel].all);
      drawBlock(plot("block"), s, groups, image, channel);
      drawMaps(plot("maps"), order.map((c) => features[image][c]), made.map(({y}) => y));
      say(place, "m", String(made[channel].all.length));
      say(place, "sets", String({batch: CHANNELS, layer: s.batch, instance: s.batch * CHANNELS, group: s.batch * groups}[s.norm]));
      say(place, "stats", `${short(mean, 2)}, ${short(Math.sqrt(variance), 2)}`);
      const area = `H·W = ${AREA}`, per = CHANNELS / groups;
      say(place, "formula", {batch: `N·H·W = ${s.batch}·${AREA}`, layer: `C·H·W = 8·${AREA}`, instance: area, group: `(C/G)·H·W = ${per}·${AREA}`}[s.norm]);
      const known = s.batch === 4 && image === 0 && order.every((v, i) => v === i) && (s.norm !== "group" || groups === 2);
      const away = known ? Math.max(...made.flatMap(({y}, c) => y.map((v, i) => Math.abs(v - outputs[s.norm][c][i])))) : NaN;
      say(place, "away", known ? short(away, 2) : "–", known && away < 1e-5 ? "good" : "");
    },
  });
}
