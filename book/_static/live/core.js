/* What the explorer computes: levels from bytes, the anomaly map, scores and measures, as the package computes them.
   Formulas: uad_core/scoring.py and uad_core/metrics.py. The page and its tests load this one file. */
(function (root) {
  "use strict";

  const FAINTEST = 1e-4; // residual below which a logarithm does not fall
  const TOP = 0.002; // of an anomaly map, whose mean is the score "top"

  /* --- bytes ------------------------------------------------------------------------------------------------ */

  function fromBase64(text) {
    const letters = atob(text);
    return Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  }

  async function inflate(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /* Bytes of a level, kept as differences along its rows. */
  async function unpack(text, width) {
    const bytes = await inflate(fromBase64(text));
    for (let start = 0; start < bytes.length; start += width)
      for (let x = 1; x < width; x++) bytes[start + x] += bytes[start + x - 1]; // modulo 256, as the array is
    return bytes;
  }

  /* value = low * (high / low) ** (byte / 255) */
  function dequantise(bytes, low, high) {
    const table = Float64Array.from({ length: 256 }, (_, b) => low * Math.exp((b / 255) * Math.log(high / low)));
    return Float64Array.from(bytes, (b) => table[b]);
  }

  function unpackBits(text, count) {
    const bytes = fromBase64(text);
    return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
  }

  /* Levels of a method's file: [{name, h, w, maps: [Float64Array, ...]}], one map for each image. */
  async function levelsOf(file) {
    return Promise.all(file.levels.map(async (level) => {
      const [h, w] = level.size;
      const values = dequantise(await unpack(level.bytes, w), level.low, level.high);
      const maps = [];
      for (let i = 0; i < values.length; i += h * w) maps.push(values.subarray(i, i + h * w));
      return { name: level.name, h, w, maps };
    }));
  }

  /* --- maps ------------------------------------------------------------------------------------------------- */

  /* Where each of `after` pixels lies between two of `before`: [first, second, weight of the second]. */
  function places(before, after, align) {
    const found = [];
    for (let i = 0; i < after; i++) {
      const at = align ? (after > 1 ? (i * (before - 1)) / (after - 1) : 0) : Math.max(0, ((i + 0.5) * before) / after - 0.5);
      const first = Math.min(Math.floor(at), before - 1);
      found.push([first, Math.min(first + 1, before - 1), at - first]);
    }
    return found;
  }

  /* Bilinear, as torch.nn.functional.interpolate. */
  function upsample(map, h, w, H, W, align) {
    if (h === H && w === W) return map;
    const rows = places(h, H, align), columns = places(w, W, align), out = new Float64Array(H * W);
    for (let y = 0; y < H; y++) {
      const [a, b, v] = rows[y];
      for (let x = 0; x < W; x++) {
        const [c, d, u] = columns[x];
        out[y * W + x] = (1 - v) * ((1 - u) * map[a * w + c] + u * map[a * w + d])
          + v * ((1 - u) * map[b * w + c] + u * map[b * w + d]);
      }
    }
    return out;
  }

  /* Gaussian of 4 sigma to both sides, the border reflected: along the rows, then along the columns. */
  function blur(map, H, W, sigma) {
    if (sigma <= 0) return map;
    const radius = Math.min(Math.floor(4 * sigma + 0.5), Math.min(H, W) - 1);
    const kernel = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
    const sum = kernel.reduce((a, b) => a + b);
    const reflect = (i, n) => (i < 0 ? -i : i >= n ? 2 * n - 2 - i : i);
    const pass = (source, along, across, step, stride) => {
      const out = new Float64Array(H * W);
      for (let line = 0; line < across; line++)
        for (let i = 0; i < along; i++) {
          let value = 0;
          for (let k = -radius; k <= radius; k++)
            value += kernel[k + radius] * source[line * stride + reflect(i + k, along) * step];
          out[line * stride + i * step] = value / sum;
        }
      return out;
    };
    return pass(pass(map, W, H, 1, W), H, W, W, 1);
  }

  const log = (map) => map.map((value) => Math.log(Math.max(value, FAINTEST)));
  const log1p = (map) => map.map((value) => Math.log1p(Math.max(value, 0)));

  function weighted(maps, weights) {
    const out = new Float64Array(maps[0].length);
    maps.forEach((map, k) => { for (let i = 0; i < out.length; i++) out[i] += weights[k] * map[i]; });
    return out;
  }

  /* The anomaly map (side x side, float32) of image i from the chosen levels. */
  function fuse(levels, formula, chosen, i, side) {
    const [H, W] = formula.size;
    const maps = chosen.map((k) => upsample(levels[k].maps[i], levels[k].h, levels[k].w, H, W, formula.align));
    const weights = chosen.map((k) => formula.weights[k]);
    const ones = chosen.map(() => 1), total = weights.reduce((a, b) => a + b);
    let map;
    if (formula.how === "log") map = blur(weighted(maps.map(log1p), weights), H, W, formula.sigma);
    else if (formula.how === "geometric")
      map = blur(weighted(maps.map(log), weights.map((w) => w / total)), H, W, formula.sigma).map(Math.exp);
    else if (formula.how === "product")
      map = blur(maps.reduce((a, b) => a.map((value, p) => value * b[p])), H, W, formula.sigma);
    else {
      map = blur(weighted(maps, ones), H, W, formula.sigma);
      if (formula.how === "mean") map = map.map((value) => value / maps.length);
    }
    return Float32Array.from(upsample(map, H, W, side, side, false));
  }

  function imageScore(map, side, score) {
    const values = Float32Array.from(blur(map, side, side, score.sigma));
    if (score.how === "max") return values.reduce((a, b) => Math.max(a, b));
    if (score.how === "mean") return Math.fround(values.reduce((a, b) => a + b, 0) / values.length);
    const count = Math.max(1, Math.round(TOP * values.length));
    const top = values.sort().subarray(values.length - count);
    return Math.fround(top.reduce((a, b) => a + b, 0) / count);
  }

  /* --- measures --------------------------------------------------------------------------------------------- */

  /* What all measures need of the scores: for each distinct score of an anomalous sample, from the highest down, how
     many anomalous samples have it, and how many normal ones have more, or at least as much. */
  function ranks(scores, labels) {
    const normal = Float32Array.from(scores.filter((_, i) => !labels[i])).sort();
    const anomalous = Float32Array.from(scores.filter((_, i) => labels[i])).sort();
    const rows = [];
    let above = normal.length, atLeast = normal.length; // indices into `normal`: the first above, the first not below
    for (let i = anomalous.length - 1; i >= 0;) {
      const s = anomalous[i];
      let count = 0;
      while (i >= 0 && anomalous[i] === s) { count++; i--; }
      while (above > 0 && normal[above - 1] > s) above--;
      atLeast = Math.min(atLeast, above);
      while (atLeast > 0 && normal[atLeast - 1] >= s) atLeast--;
      rows.push({ count, fpAbove: normal.length - above, fp: normal.length - atLeast });
    }
    return { rows, normal: normal.length, anomalous: anomalous.length };
  }

  /* AUROC, average precision and the largest F1; null where a class is missing. */
  function measures(scores, labels) {
    const { rows, normal, anomalous } = ranks(scores, labels);
    if (!normal || !anomalous) return { auroc: null, ap: null, f1max: null };
    let lost = 0, precision = 0, f1max = 0, tp = 0;
    for (const { count, fpAbove, fp } of rows) {
      tp += count;
      lost += (count * (fpAbove + fp)) / 2;
      precision += (count * tp) / (tp + fp);
      f1max = Math.max(f1max, (2 * tp) / (tp + fp + anomalous));
    }
    return { auroc: 1 - lost / (normal * anomalous), ap: precision / anomalous, f1max };
  }

  /* What a threshold makes of image scores: above it is anomalous. */
  function judged(scores, labels, threshold) {
    let tp = 0, fp = 0, fn = 0;
    scores.forEach((score, i) => {
      if (score > threshold) labels[i] ? tp++ : fp++;
      else if (labels[i]) fn++;
    });
    return { falseAlarms: fp, missed: fn, found: tp, f1: tp ? (2 * tp) / (2 * tp + fp + fn) : 0 };
  }

  /* Everything that the page shows for a method and chosen levels. */
  function evaluate(file, levels, category, chosen) {
    const side = category.side, labels = category.labels;
    const maps = labels.map((_, i) => fuse(levels, file.formula, chosen, i, side));
    const scores = maps.map((map) => imageScore(map, side, file.score));
    const pixels = new Float32Array(maps.length * side * side);
    maps.forEach((map, i) => pixels.set(map, i * side * side));
    const masks = unpackBits(category.masks, pixels.length);
    return { maps, scores, image: measures(scores, labels), pixel: measures(pixels, masks) };
  }

  const core = { blur, dequantise, evaluate, fuse, imageScore, judged, levelsOf, measures, unpack, unpackBits, upsample };
  if (typeof module !== "undefined" && module.exports) module.exports = core;
  else root.uadCore = core;
})(typeof self !== "undefined" ? self : this);
