"use strict";
// Batch norm of one channel, forward and backward, line by line as normkit/reference/batch_norm.py has it.
// Rules: the mean in two parts, since the rounding of one part shows in x - mean where |mean| >> deviation; sums are
// compensated (Neumaier), so their error does not grow with the number of values.

function total(values) {
  let sum = 0, lost = 0;
  for (const value of values) {
    const next = sum + value;
    lost += Math.abs(sum) >= Math.abs(value) ? (sum - next) + value : (value - next) + sum;
    sum = next;
  }
  return sum + lost;
}

function moments(x) {
  const m = x.length, high = total(x) / m;
  const low = total(x.map(v => v - high)) / m;
  const centred = x.map(v => (v - high) - low);
  return {mean: high + low, variance: total(centred.map(v => v * v)) / m, centred};
}

function forward(x, gamma, beta, eps) {
  const {variance, centred} = moments(Array.from(x));
  const root = Math.sqrt(variance + eps);
  return centred.map(c => gamma * (c / root) + beta);
}

// Every step by its name; `wrong` names a slip to make on purpose: "mean", "variance", "m" or "eps".
function backwardSteps(x, gamma, beta, eps, dy, wrong = "") {
  const values = Array.from(x), m = values.length, {variance, centred} = moments(values);
  const root = wrong === "eps" ? Math.sqrt(variance) + eps : Math.sqrt(variance + eps);
  const xhat = centred.map(c => c / root);
  const dbeta = total(dy), dgamma = total(xhat.map((v, i) => dy[i] * v));
  const dxhat = Array.from(dy, v => v * gamma);
  const divisor = wrong === "m" ? m - 1 : m;
  const dvar = wrong === "variance" ? 0 : total(centred.map((c, i) => dxhat[i] * c)) * -0.5 / root ** 3;
  const second = dvar * total(centred.map(c => -2 * c)) / m;
  const dmean = wrong === "mean" ? 0 : -total(dxhat.map(v => v / root)) + second;
  const dx = centred.map((c, i) => dxhat[i] / root + dvar * 2 * c / divisor + dmean / m);
  return {xhat, dbeta, dgamma, dxhat, dvar, dmean, second, dx};
}

function backward(x, gamma, beta, eps, dy) {
  const {dx, dgamma, dbeta} = backwardSteps(x, gamma, beta, eps, dy);
  return {dx, dgamma, dbeta};
}

window.normkit = {forward, backward};
