/* How the book's live pages show things: maps in colour, outlines, a histogram, elements. */
(function (root) {
  "use strict";

  /* "inferno" of matplotlib at 17 values, the colour map of all the book's maps. */
  const INFERNO = [[0, 0, 3], [10, 7, 35], [32, 12, 74], [60, 9, 101], [87, 15, 109], [112, 25, 110], [137, 34, 105],
    [163, 43, 97], [187, 55, 84], [209, 70, 67], [228, 90, 49], [241, 114, 29], [249, 142, 8], [251, 172, 16],
    [248, 203, 52], [241, 233, 104], [252, 254, 164]];
  const PX = 256; // of a picture

  function colour(share) {
    const at = Math.max(0, Math.min(1, share)) * 16, k = Math.min(15, Math.floor(at)), u = at - k;
    return INFERNO[k].map((c, i) => Math.round((1 - u) * c + u * INFERNO[k + 1][i]));
  }

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties))
      key in made && key !== "list" ? (made[key] = value) : made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function select(label, options, chosen, onchange) {
    const box = element("select");
    for (const [value, text] of options) box.append(element("option", { value, textContent: text, selected: value === chosen }));
    box.onchange = () => onchange(box.value);
    return element("label", { className: "live-field" }, label, box);
  }

  function picture(base64) {
    const image = new Image();
    image.src = `data:image/webp;base64,${base64}`;
    return image.decode().then(() => image);
  }

  /* A map (h x w) as a small canvas: colours between 0 and `high`, or, over an image, opacity too. */
  function mapCanvas(map, h, w, high, over = false) {
    const canvas = element("canvas", { width: w, height: h }), context = canvas.getContext("2d");
    const pixels = context.createImageData(w, h);
    for (let i = 0; i < h * w; i++) {
      const share = map[i] / high, [r, g, b] = colour(share);
      pixels.data.set([r, g, b, over ? Math.round(230 * Math.max(0, Math.min(1, share)) ** 0.7) : 255], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function drawMap(canvas, map, h, w, high, over = false) {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false; // cells are what the network sees
    context.drawImage(mapCanvas(map, h, w, high, over), 0, 0, canvas.width, canvas.height);
  }

  /* Outline of the cells of a grid where `inside(i)` holds. */
  function outline(canvas, side, inside, style, width, dash = []) {
    const context = canvas.getContext("2d"), cell = canvas.width / side;
    const at = (x, y) => x >= 0 && y >= 0 && x < side && y < side && inside(y * side + x);
    context.beginPath();
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        if (!at(x, y)) continue;
        if (!at(x - 1, y)) { context.moveTo(x * cell, y * cell); context.lineTo(x * cell, (y + 1) * cell); }
        if (!at(x + 1, y)) { context.moveTo((x + 1) * cell, y * cell); context.lineTo((x + 1) * cell, (y + 1) * cell); }
        if (!at(x, y - 1)) { context.moveTo(x * cell, y * cell); context.lineTo((x + 1) * cell, y * cell); }
        if (!at(x, y + 1)) { context.moveTo(x * cell, (y + 1) * cell); context.lineTo((x + 1) * cell, (y + 1) * cell); }
      }
    context.setLineDash(dash);
    for (const [colour, extra] of [["#000", 2], [style, 0]]) { // a dark rim, so that it shows on any ground
      context.strokeStyle = colour;
      context.lineWidth = width + extra;
      context.stroke();
    }
    context.setLineDash([]);
  }

  /* The largest values of some maps, but for the uppermost thousandth: the end of their colour scale. */
  function endOfScale(maps) {
    const sample = Float64Array.from(maps.flatMap((map) => Array.from(map))).sort();
    return sample[Math.floor(0.999 * (sample.length - 1))];
  }

  /* "phi_1" as it is printed: φ₁. */
  const symbol = (name) => name.replace(/^phi/, "φ").replace(/_(\d)$/, (_, digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);

  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  /* Histogram of the scores of normal and anomalous images, with a threshold, as SVG. */
  function histogram(scores, labels, threshold, low, high) {
    const width = 420, height = 190, left = 34, bottom = 36, top = 22, bins = 24;
    const counts = [new Array(bins).fill(0), new Array(bins).fill(0)];
    scores.forEach((s, i) => counts[labels[i]][Math.min(bins - 1, Math.floor(((s - low) / (high - low)) * bins))]++);
    const most = Math.max(...counts.flat(), 1);
    const x = (value) => left + ((value - low) / (high - low)) * (width - left - 8);
    const y = (count) => height - bottom - (count / most) * (height - bottom - top);
    const steps = counts.map((row, label) => {
      let path = `M${left} ${y(0)}`;
      row.forEach((count, k) => { path += `V${y(count).toFixed(1)}H${x(low + ((k + 1) / bins) * (high - low)).toFixed(1)}`; });
      return `<path class="live-${label ? "anomalous" : "normal"}" d="${path}V${y(0)}Z"/>`;
    });
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
      const value = low + share * (high - low);
      return `<text x="${x(value)}" y="${height - bottom + 16}" text-anchor="middle">${value.toPrecision(2)}</text>`;
    });
    const at = x(Math.max(low, Math.min(high, threshold))), end = at > width / 2;
    return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Histogram of the image scores: ` +
      `${labels.filter((l) => !l).length} normal and ${labels.filter((l) => l).length} defective images, ` +
      `threshold ${threshold.toPrecision(3)}">${steps.join("")}` +
      `<path class="live-axis" d="M${left} ${y(0)}H${width - 8}"/>${ticks.join("")}` +
      `<text x="${left - 6}" y="${y(most) + 4}" text-anchor="end">${most}</text>` +
      `<text x="${left - 6}" y="${y(0)}" text-anchor="end">0</text>` +
      `<text x="${(left + width) / 2}" y="${height - 4}" text-anchor="middle">image score</text>` +
      `<path class="live-threshold" d="M${at.toFixed(1)} ${top - 6}V${height - bottom}"/>` +
      `<text x="${at + (end ? -5 : 5)}" y="14" text-anchor="${end ? "end" : "start"}">threshold ${threshold.toPrecision(3)}</text></svg>`;
  }

  root.uadShow = { PX, drawMap, element, endOfScale, histogram, number, outline, picture, select, symbol };
})(self);
