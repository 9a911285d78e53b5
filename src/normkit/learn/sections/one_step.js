{
  // y of a net of m layers with two units: h <- relu(w A_k h), y = the sum. A_k mixes the two, now and then with a minus.
  const MIX = [[0.62, 0.38, 0.41, 0.59], [0.7, 0.3, -0.12, 1.08], [0.45, 0.55, 0.6, 0.4], [1.1, -0.15, 0.25, 0.75]];

  function netValue(weights) {
    let h = [0.5, 0.5];
    const kept = [];
    for (const [a, b, c, d] of weights) {
      const z = [a * h[0] + b * h[1], c * h[0] + d * h[1]];
      kept.push({h, on: z.map((v) => (v > 0 ? 1 : 0))});
      h = z.map((v) => Math.max(0, v));
    }
    return {y: h[0] + h[1], kept};
  }

  function netGradient(weights) {
    const {y, kept} = netValue(weights), gradient = [];
    let back = [1, 1];
    for (let k = weights.length - 1; k >= 0; k--) {
      const {h, on} = kept[k], [a, b, c, d] = weights[k], e = [back[0] * on[0], back[1] * on[1]];
      gradient[k] = [e[0] * h[0], e[0] * h[1], e[1] * h[0], e[1] * h[1]];
      back = [a * e[0] + c * e[1], b * e[0] + d * e[1]];
    }
    return {y, gradient};
  }

  function step({net, aim, depth, w, rate}, own) {  // {promised, terms: change of y by power of the rate, actual}
    const sign = aim === "fall" ? -1 : 1;
    if (net === "relu") {
      const weights = Array.from({length: depth}, (_, k) => MIX[k % MIX.length].map((v) => w * v)), {y, gradient} = netGradient(weights);
      const promised = sign * rate * gradient.flat().reduce((sum, g) => sum + g * g, 0);
      const actual = netValue(weights.map((row, k) => row.map((v, i) => v + sign * rate * gradient[k][i]))).y - y;
      return {promised, actual, terms: [promised, actual - promised]};
    }
    const weights = own ?? Array(depth).fill(w), product = (values) => values.reduce((all, v) => all * v, 1);
    const gradient = weights.map((_, k) => product(weights.filter((_, i) => i !== k))), by = sign * rate;
    let terms = [1];  // of the product of (w + by g), sorted by powers of the rate
    weights.forEach((v, i) => { terms = [...terms, 0].map((term, k) => term * v + (k ? terms[k - 1] * by * gradient[i] : 0)); });
    const actual = product(weights.map((v, i) => v + by * gradient[i])) - product(weights);
    return {promised: terms[1], actual, terms: terms.slice(1), weights};
  }

  function signed(c, left, right, reach) {  // symmetric: linear within 10^-6, then one decade after the other
    const size = (v) => Math.max(0, Math.log10(Math.abs(v) / 1e-6)), most = Math.max(1, size(reach)), middle = (left + right) / 2;
    return (v) => middle + Math.sign(v) * Math.min(1, size(v) / most) * (right - left) / 2;
  }

  function drawArrows(plot, {promised, actual}, wrong) {
    const c = chart(plot, 132), at = signed(c, 20, c.width - 20, Math.max(Math.abs(promised), Math.min(Math.abs(actual), 1e30))), zero = at(0);
    c.line(zero, 8, zero, 112, "grid");
    c.text(zero, 128, "0", {"text-anchor": "middle", class: "muted"});
    c.text(20, 128, t("y falls", "y 下降"), {class: "muted"}); c.text(c.width - 20, 128, t("y rises", "y 上升"), {"text-anchor": "end", class: "muted"});
    c.text(zero + 6, 20, t("promised", "承诺"), {class: "muted"}); c.text(zero + 6, 72, t("actual", "实际"), {class: "muted"});
    c.arrow(zero, 38, at(promised), 38, 5);
    c.arrow(zero, 90, at(actual), 90, wrong ? "bad" : 1);
  }

  function drawTerms(plot, terms, net) {
    const shown = terms.slice(0, 32), c = chart(plot, 190), most = Math.max(...shown.map(Math.abs)), low = Math.max(1e-12, most * 1e-9);
    const height = scaled(Math.log10(low), Math.log10(Math.max(most, low * 10)), 3, 130), width = Math.min(60, (c.width - 20) / shown.length);
    shown.forEach((v, i) => {
      const h = v === 0 ? 0 : height(Math.log10(Math.abs(v)));
      c.box(10 + i * width + 1, 160 - h, width - 2, h, v < 0 ? 1 : 2, {rx: 2});
      const every = width < 26 ? 4 : 1, name = net === "relu" ? ["ε", t("the rest", "其余")][i] : `ε${String(i + 1).replace(/./g, (d) => RAISED[d])}`;
      if (i % every === 0) c.text(10 + (i + 0.5) * width, 178, i === 0 ? "ε" : name, {"text-anchor": "middle", class: "muted"});
    });
    c.text(4, 13, t("size (log₁₀)", "大小（log₁₀）"), {class: "muted"});
    legend(c, [[1, t("lowers y", "使 y 下降")], [2, t("raises y", "使 y 上升")]]);
  }

  section("one-step", {
    labels: {depth: String, w: (v) => fixed(v, 2)},
    truth: () => (2 / 0.03) ** (1 / 14),
    actions: {},
    draw(s, place, plot) {
      const own = typed(place, "weights", 2, 32), made = step(s, own), ratio = made.actual / made.promised, wrong = made.actual * made.promised < 0;
      drawArrows(plot("arrows"), made, wrong);
      drawTerms(plot("terms"), made.terms, s.net);
      say(place, "promised", short(made.promised));
      say(place, "actual", short(made.actual), wrong ? "bad" : "");
      say(place, "ratio", short(ratio), Math.abs(ratio - 1) < 0.1 ? "good" : "");
      const over = !Number.isFinite(made.actual) || Math.abs(made.actual) > 3.4e38;
      const word = made.promised === 0 ? t("no gradient", "没有梯度") : wrong ? t("wrong way!", "走反了！") : over ? t("overflow", "溢出") : Math.abs(ratio - 1) < 0.1 ? t("as promised", "如约") : ratio > 1 ? t("overshoots", "过头") : t("falls short", "不足");
      say(place, "word", word, wrong || over ? "bad" : Math.abs(ratio - 1) < 0.1 ? "good" : "");
      if (made.weights) {
        fromLibrary(place, {weights: made.weights, rate: s.aim === "fall" ? s.rate : -s.rate}, (answer) => apart([made.promised, made.actual], [answer.promised, answer.actual]));
      } else say(place, "library", "–");
    },
  });
}
