{
  // NUMBERS.maps.features[n][c]: one map as a flat list
  const NORMS = {batch: "BatchNorm", layer: "LayerNorm", instance: "InstanceNorm", group: "GroupNorm"};
  const CHANNELS = 8, SIZE = NUMBERS.maps.size, AREA = SIZE * SIZE, EPS = 1e-5;
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
      const {features} = NUMBERS.maps, mine = features[image][order[channel]], all = [];
      let from = 0;
      for (let n = 0; n < batch; n++) for (let c = 0; c < CHANNELS; c++) {
        if (!together(norm, groups, n, c, image, channel)) continue;
        if (n === image && c === channel) from = all.length;
        all.push(...features[n][order[c]]);
      }
      return {y: forward(all, 1, 0, EPS).slice(from, from + mine.length), all};
    });
  }

  // The four norms side by side: in each the cells that share the statistics of the cell that is looked at.
  function drawBlocks(plot, s, groups, image, channel) {
    const names = Object.keys(NORMS), per = plot.clientWidth > 560 ? 4 : 2, row = 18, gap = 16, head = 42, high = head + row * s.batch + gap;
    const c = chart(plot, high * 4 / per), wide = (c.width - gap * (per - 1)) / per, cell = (wide - 14) / CHANNELS;
    names.forEach((norm, i) => {
      const left = (i % per) * (wide + gap), top = Math.floor(i / per) * high;
      c.text(left + 14, top + 14, NORMS[norm], {style: norm === s.norm ? "font-weight:700;fill:var(--accent)" : ""});
      for (let k = 0; k < CHANNELS; k++) c.text(left + 14 + (k + 0.5) * cell, top + 33, order[k] + 1, {"text-anchor": "middle", class: "muted"});
      for (let n = 0; n < s.batch; n++) {
        c.text(left, top + head + row * n + 12, n + 1, {class: "muted"});
        for (let k = 0; k < CHANNELS; k++) {
          const here = n === image && k === channel, shared = together(norm, groups, n, k, image, channel);
          const made = c.box(left + 14 + k * cell + 1, top + head + row * n, cell - 2, row - 3, shared ? 1 : "soft", {rx: 3, opacity: shared && !here ? 0.6 : 1, stroke: here ? "var(--c2)" : "var(--line)", "stroke-width": here ? 3 : 1, class: "handle"});
          made.addEventListener("click", () => look(norm, n, k));
        }
      }
    });
  }

  function look(norm, image, channel) {  // as if the reader had moved the controls
    const place = document.getElementById("shared-mean");
    place.querySelector(`[data-name="norm"][value="${norm}"]`).checked = true;
    set(place, "image", image + 1); set(place, "channel", channel + 1);
    draw("shared-mean");
  }

  // One map as a picture of grey values: a .bmp, since its bytes are the same in every browser.
  function bitmap(values) {
    const line = 4 * Math.ceil(3 * SIZE / 4), bytes = new Uint8Array(54 + line * SIZE), head = new DataView(bytes.buffer);
    bytes.set([66, 77]);
    for (const [at, v] of [[2, bytes.length], [10, 54], [14, 40], [18, SIZE], [22, SIZE], [26, 1 + (24 << 16)]]) head.setUint32(at, v, true);
    values.forEach((v, i) => bytes.fill(v, 54 + line * (SIZE - 1 - Math.floor(i / SIZE)) + 3 * (i % SIZE), 54 + line * (SIZE - 1 - Math.floor(i / SIZE)) + 3 * (i % SIZE) + 3));
    return `data:image/bmp;base64,${btoa(String.fromCharCode(...bytes))}`;
  }

  function drawMaps(plot, before, after) {
    const gap = 5, wide = plot.clientWidth > 560, per = wide ? 8 : 4, bands = 8 / per;
    const c0 = Math.max(250, Math.min(760, plot.clientWidth || 620)), cell = (c0 - gap * (per - 1)) / per;
    const c = chart(plot, bands * (2 * cell + 3 * gap + 8));
    const grey = (values, all) => {
      const low = Math.min(...all), high = Math.max(...all);
      return values.map((v) => Math.round(255 * (v - low) / (high - low || 1)));
    };
    const paint = (values, x, y) => element(c.svg, "image", {x, y, width: cell, height: cell, href: bitmap(values), style: "image-rendering:pixelated"});
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
      const {features, outputs} = NUMBERS.maps;
      drawBlocks(plot("block"), s, groups, image, channel);
      drawMaps(plot("maps"), order.map((c) => features[image][c]), made.map(({y}) => y));
      say(place, "m", String(made[channel].all.length));
      say(place, "sets", String({batch: CHANNELS, layer: s.batch, instance: s.batch * CHANNELS, group: s.batch * groups}[s.norm]));
      say(place, "stats", `${short(mean, 2)}, ${short(Math.sqrt(variance), 2)}`);
      const factors = {batch: [s.batch], layer: [CHANNELS], instance: [], group: [CHANNELS / groups]};
      for (const line of place.querySelectorAll("[data-norm]")) {
        const norm = line.dataset.norm, of = [...factors[norm], SIZE, SIZE];
        line.classList.toggle("now", norm === s.norm);
        say(place, `m-${norm}`, `${NORMS[norm]}: ${of.join(" · ")} = ${of.reduce((all, v) => all * v, 1)}`);
      }
      const known = s.batch === 4 && image === 0 && order.every((v, i) => v === i) && (s.norm !== "group" || groups === 2);
      const away = known ? Math.max(...made.flatMap(({y}, c) => y.map((v, i) => Math.abs(v - outputs[s.norm][c][i])))) : NaN;
      say(place, "away", known ? short(away, 2) : "–", known && away < 1e-5 ? "good" : "");
      const shuffled = features.slice(0, s.batch).map((maps) => order.map((c) => maps[c]));
      fromLibrary(place, {maps: shuffled, norm: s.norm, groups, image}, (answer) => apart(made.flatMap(({y}) => y), answer.y.flat()));
    },
  });
}
