// The mathematics of the explorers: Eqs. (6)-(8) of L-RED, and its Gamma order-statistic test (Sec. 3.2) in log space.
// The same numbers as detectors.source_weights, anomaly and prose.p; tests/widgets and tests/browser compare them.

/** T = -log Q, Eq. (7): Infinity where nothing is misclassified. */
export const temperature = (w, q) => -Math.log(w.reduce((sum, ws, s) => sum + ws * q[s], 0));

/** Weights of Eq. (8), softmax of q / T, with its limits T = 0 and T = Infinity. */
export function closedForm(q, t) {
  const top = Math.max(...q);
  const raw = q.map((qs) => (t > 0 ? (t === Infinity ? 1 : Math.exp((qs - top) / t)) : Number(qs === top)));
  const sum = raw.reduce((a, b) => a + b, 0);
  return raw.map((x) => x / sum);
}

/** Entropy in nats. */
export const entropy = (w) => -w.reduce((sum, ws) => sum + (ws > 0 ? ws * Math.log(ws) : 0), 0);

export function median(x) {
  const sorted = [...x].sort((a, b) => a - b), half = (sorted.length - 1) / 2;
  return (sorted[Math.floor(half)] + sorted[Math.ceil(half)]) / 2;
}

const LANCZOS = [
  0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
  12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
];

/** log Gamma(x), x > 0. */
export function logGamma(x) {
  if (x > 20) {  // Stirling's series: the Lanczos sum loses digits here
    const y = 1 / (x * x);
    return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI)
      + (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x;
  }
  let sum = LANCZOS[0];
  for (let i = 1; i < 9; i++) sum += LANCZOS[i] / (x + i - 1);
  const t = x + 6.5;
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
}

/** First and second derivative of log Gamma, by recurrence to x >= 10 and the asymptotic series there. */
export function polygamma(x) {
  let first = 0, second = 0;
  for (; x < 10; x++) {
    first -= 1 / x;
    second += 1 / (x * x);
  }
  const y = 1 / (x * x);
  first += Math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))));
  second += 1 / x + y / 2 + (y / x) * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - (5 * y) / 66))));
  return [first, second];
}

/** Maximum-likelihood Gamma fit with location 0: Newton steps on log a - digamma(a) = log(mean) - mean(log). */
export function fitGamma(x) {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const s = Math.max(Math.log(mean) - x.reduce((a, b) => a + Math.log(b), 0) / x.length, 1e-13);
  let a = (3 - s + Math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s);
  for (let i = 0; i < 12; i++) {
    const [digamma, trigamma] = polygamma(a);
    const next = a - (Math.log(a) - digamma - s) / (1 / a - trigamma);
    a = Math.min(Math.max(next > 0 ? next : a / 2, 1e-8), 1e12);
  }
  return { shape: a, scale: mean / a };
}

/** log density of Gamma(shape), scale 1. */
export const logDensity = (x, shape) => (shape - 1) * Math.log(x) - x - logGamma(shape);

/** log of the Gamma survival function, scale 1, far beyond the underflow of the function itself. */
export function logSurvival(x, shape) {
  if (x <= 0) return 0;
  if (shape > 1e5) return logSurvivalLarge(x, shape);
  const front = shape * Math.log(x) - x - logGamma(shape);
  if (x < shape + 1) {  // 1 - P by the series of P
    let term = 1 / shape, sum = term;
    for (let n = 1; n < 1e5 && term > sum * 1e-17; n++) sum += term *= x / (shape + n);
    return Math.log1p(-Math.min(Math.exp(front + Math.log(sum)), 1));
  }
  let b = x + 1 - shape, c = 1e300, d = 1 / b, f = d;  // Lentz's continued fraction
  for (let i = 1; i < 1e5; i++) {
    const an = -i * (i - shape);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    f *= d * c;
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return front + Math.log(f);
}

/** Temme's expansion for large shapes, where series and fraction are slow; statistics that are all alike end here. */
function logSurvivalLarge(x, shape) {
  const mu = (x - shape) / shape;
  const half = mu - Math.log1p(mu);  // eta^2 / 2
  const eta = Math.sign(mu) * Math.sqrt(2 * (Math.abs(mu) < 1e-4 ? mu * mu * (0.5 - mu / 3 + (mu * mu) / 4) : half));
  const first = Math.abs(eta) < 1e-3 ? -1 / 3 + eta / 12 : 1 / mu - 1 / eta;
  const z = eta * Math.sqrt(shape / 2);
  const rest = first / Math.sqrt(2 * Math.PI * shape);
  if (z < 5) return Math.log(Math.max(0.5 * erfc(z) + rest * Math.exp(-z * z), 0));
  return -z * z + Math.log(0.5 * scaledErfc(z) + rest);
}

/** exp(z^2) erfc(z) for z > 0, by a continued fraction for z >= 2, else by the series of erf. */
function scaledErfc(z) {
  if (z < 2) return Math.exp(z * z) * erfc(z);
  let f = 0;
  for (let k = 60; k > 0; k--) f = k / 2 / (z + f);
  return 1 / ((z + f) * Math.sqrt(Math.PI));
}

function erfc(z) {
  if (z < 0) return 2 - erfc(-z);
  if (z >= 2) return Math.exp(-z * z) * scaledErfc(z);
  let term = z, sum = z;
  for (let n = 1; n < 80; n++) {
    term *= (-z * z) / n;
    sum += term / (2 * n + 1);
  }
  return 1 - (2 / Math.sqrt(Math.PI)) * sum;
}

/** log(1 - (1 - S)^k) from log S, without cancellation or underflow. */
export function logOrderP(logS, k) {
  const s = Math.min(logS, 0);
  return s > -30 ? Math.log(-Math.expm1(k * Math.log1p(-Math.exp(s)))) : Math.log(k) + s;
}

/** L-RED's test on r (K numbers > 0, K >= 3): the null is fitted to all but the largest. */
export function gammaTest(r) {
  const suspect = r.indexOf(Math.max(...r));
  const { shape, scale } = fitGamma(r.filter((_, i) => i !== suspect));
  return { suspect, shape, scale, logP: logOrderP(logSurvival(r[suspect] / scale, shape), r.length) };
}

/** Text of exp(logP), also where that underflows: "0.031", "8.5e-9", "1.2e-412". */
export function formatP(logP) {
  if (Number.isNaN(logP)) return "not defined";
  if (logP === -Infinity) return "0";
  const ten = logP / Math.LN10;
  if (ten > -3) return Math.exp(logP).toPrecision(2);
  let power = Math.floor(ten), lead = 10 ** (ten - power);
  if (lead >= 9.95) [lead, power] = [1, power + 1];
  return `${lead.toFixed(1)}e${power}`;
}

/** Three significant digits; infinity as its sign. */
export function formatNumber(x, digits = 3) {
  if (x === Infinity) return "∞";
  if (!Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  return Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3 ? x.toExponential(digits - 1) : String(Number(x.toPrecision(digits)));
}
