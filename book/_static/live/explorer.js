/* The explorer: pick a category, an image and a method, switch levels, move the threshold. */
(function () {
  "use strict";

  const { evaluate, judged, levelsOf, unpackBits } = self.uadCore;
  const { PX, drawMap, element, endOfScale, histogram, number, outline, picture, select, symbol } = self.uadShow;
  const HERE = new URL("levels/", document.currentScript.src);
  const STEPS = 1000; // of the threshold's slider
  const MASK = "#56D0F5", FOUND = "#FFFFFF";
  const KEY = '<p class="live-bars"><span class="live-bar-normal">good images</span> <span class="live-bar-anomalous">'
    + "defective images</span></p>";

  const files = {}, loading = {};
  self.uadData = (name, content) => { files[name] = content; };

  /* Files are scripts: a page that is opened from disk may load those. */
  function file(name) {
    loading[name] ||= new Promise((resolve, reject) => {
      const script = element("script", { src: new URL(`${name}.js`, HERE).href });
      script.onload = () => resolve(files[name]);
      script.onerror = () => reject(new Error(`${script.src} is missing`));
      document.head.append(script);
    });
    return loading[name];
  }

  const state = { category: null, method: null, image: null, chosen: [], threshold: 0, view: "overlay" };
  let index, category, method, levels, found, pictures, masks, range, scale;

  const place = document.getElementById("explorer");
  const part = (name, tag = "div", properties = {}) => element(tag, { className: `live-${name}`, ...properties });
  const controls = part("controls"), strip = part("strip", "fieldset"), stage = part("stage"), maps = part("maps");
  const curve = part("curve"), table = part("table"), verdict = part("verdict", "p", { "aria-live": "polite" });
  const switches = part("switches", "fieldset"), slider = part("slider"), note = part("note", "p");

  /* --- what is chosen --------------------------------------------------------------------------------------- */

  async function choose(change) {
    Object.assign(state, change);
    const entry = index.methods.find((m) => m.name === state.method && m.categories.includes(state.category))
      || index.methods.find((m) => m.categories.includes(state.category));
    state.method = entry.name;
    [category, method] = await Promise.all([file(state.category), file(`${state.category}-${state.method}`)]);
    levels = await levelsOf(method);
    pictures = await Promise.all(category.images.map(picture));
    masks = unpackBits(category.masks, category.labels.length * category.side ** 2);
    state.image ??= category.labels.indexOf(1); // a defect to begin with
    state.chosen = levels.map((_, k) => k);
    drawControls();
    drawSwitches();
    drawStrip();
    const step = Math.max(...method.levels.map(({ low, high }) => (high / low) ** (1 / 510) - 1));
    note.textContent = `Residuals are kept in 8 bits: a value here is within ${(100 * step).toFixed(1)} % of the detector's.`;
    compute();
  }

  /* Maps, scores and measures of the chosen levels; the threshold goes where normal images put it. */
  function compute() {
    found = evaluate(method, levels, category, state.chosen);
    const low = Math.min(...found.scores), high = Math.max(...found.scores), placed = placedThreshold();
    const margin = 0.05 * (Math.max(high, placed) - Math.min(low, placed)) || 0.5;
    range = [Math.min(low, placed) - margin, Math.max(high, placed) + margin];
    scale = endOfScale(found.maps);
    drawSlider();
    setThreshold(placed);
  }

  const placedThreshold = () => method.thresholds[state.chosen.join(",")] ?? Math.max(...found.scores);

  function setThreshold(value) {
    state.threshold = value;
    const input = slider.querySelector("input");
    input.value = Math.round(((value - range[0]) / (range[1] - range[0])) * STEPS);
    input.setAttribute("aria-valuetext", value.toPrecision(3));
    draw();
  }

  /* --- controls --------------------------------------------------------------------------------------------- */

  function drawControls() {
    const methods = index.methods.filter((m) => m.categories.includes(state.category));
    controls.replaceChildren(
      select("Product", index.categories.map((c) => [c, c]), state.category, (c) => choose({ category: c, image: null })),
      select("Method", methods.map((m) => [m.name, m.name.toUpperCase()]), state.method, (m) => choose({ method: m })),
      select("Show", [["overlay", "map over image"], ["image", "image"], ["map", "map alone"]], state.view,
        (v) => { state.view = v; draw(); }),
    );
  }

  function drawSwitches() {
    const boxes = levels.map((level, k) => {
      const box = element("input", { type: "checkbox", checked: true, value: k });
      box.onchange = () => {
        const chosen = levels.map((_, i) => i).filter((i) => switches.querySelector(`input[value="${i}"]`).checked);
        if (!chosen.length) { box.checked = true; return; } // of no level there is no map
        state.chosen = chosen;
        compute();
      };
      return element("label", {}, box, ` ${symbol(level.name)} (${level.h} × ${level.w})`);
    });
    switches.replaceChildren(element("legend", { textContent: "Residual levels" }), ...boxes);
  }

  function drawStrip() {
    const seen = {};
    const marks = category.defects.map((defect, i) => {
      seen[defect] = (seen[defect] || 0) + 1;
      const name = `${defect.replace("_", " ")} ${seen[defect]}`;
      const radio = element("input", { type: "radio", name: "live-image", checked: i === state.image, value: i });
      radio.onchange = () => { state.image = i; draw(); };
      const shown = element("img", { src: pictures[i].src, alt: name, width: 56, height: 56 });
      return element("label", { title: name }, radio, shown, element("span", { className: "live-mark" }));
    });
    strip.replaceChildren(element("legend", { textContent: "Images" }), ...marks);
  }

  function drawSlider() {
    const input = element("input", { type: "range", min: 0, max: STEPS, step: 1, id: "live-threshold" });
    input.oninput = () => setThreshold(range[0] + (input.value / STEPS) * (range[1] - range[0]));
    const rate = (100 * method.false_alarms).toFixed(0);
    const back = element("button", { type: "button", textContent: `Place for ${rate} % false alarms` });
    back.onclick = () => setThreshold(placedThreshold());
    slider.replaceChildren(element("label", { htmlFor: "live-threshold", textContent: "Threshold" }), input, back);
  }

  /* --- what is seen ----------------------------------------------------------------------------------------- */

  function draw() {
    drawStage();
    drawLevels();
    const { scores } = found, { labels } = category;
    curve.innerHTML = histogram(scores, labels, state.threshold, ...range) + KEY;
    drawTable(judged(scores, labels, state.threshold));
    const score = scores[state.image], called = score > state.threshold, is = category.labels[state.image];
    const right = called === Boolean(is) ? "right" : called ? "a false alarm" : "a defect missed";
    verdict.textContent = `Score ${number(score)}, threshold ${number(state.threshold)}: `
      + `${called ? "anomalous" : "normal"}, which is ${right}.`;
    strip.querySelectorAll("label").forEach((label, i) => {
      const wrong = scores[i] > state.threshold !== Boolean(labels[i]);
      label.classList.toggle("live-wrong", wrong);
      label.querySelector(".live-mark").textContent = wrong ? (labels[i] ? "missed" : "alarm") : "";
    });
  }

  function canvas(label) {
    return element("canvas", { width: PX, height: PX, role: "img", "aria-label": label });
  }

  const inMask = (i) => masks[state.image * category.side ** 2 + i];

  function drawStage() {
    const i = state.image, { side } = category, map = found.maps[i], shown = canvas(
      `Image ${i + 1}, ${category.defects[i]}, with its anomaly map; outlined: its mask, and what lies above the threshold`);
    if (state.view !== "map") shown.getContext("2d").drawImage(pictures[i], 0, 0, PX, PX);
    if (state.view !== "image") drawMap(shown, map, side, side, scale, state.view === "overlay");
    outline(shown, side, inMask, MASK, 2);
    if (state.view !== "image") outline(shown, side, (p) => map[p] > state.threshold, FOUND, 1.5, [4, 3]);
    const caption = element("figcaption", {}, `${category.defects[i].replace("_", " ")}: `,
      element("span", { className: "live-key live-key-mask", textContent: "mask" }), " ",
      element("span", { className: "live-key live-key-found", textContent: "above the threshold" }));
    stage.replaceChildren(element("figure", {}, shown, caption));
  }

  function drawLevels() {
    maps.replaceChildren(...levels.map((level, k) => {
      const on = state.chosen.includes(k), name = symbol(level.name);
      const shown = canvas(`Residual level ${name}${on ? "" : ", switched off"}`);
      level.scale ||= endOfScale(level.maps);
      drawMap(shown, level.maps[state.image], level.h, level.w, level.scale);
      outline(shown, category.side, inMask, MASK, 4);
      return element("figure", { className: on ? "" : "live-off" }, shown,
        element("figcaption", { textContent: on ? name : `${name} (off)` }));
    }));
  }

  function drawTable(at) {
    const normal = category.labels.filter((l) => !l).length, defective = category.labels.length - normal, { full } = method;
    const all = state.chosen.length === levels.length;
    const rows = [
      ["Image AUROC", number(found.image.auroc), full.image_auroc], ["Image AP", number(found.image.ap), full.image_ap],
      ["Image F1, best threshold", number(found.image.f1max), full.image_f1max],
      ["Image F1, this threshold", number(at.f1), null],
      ["False alarms", `${at.falseAlarms} of ${normal}`, null], ["Missed defects", `${at.missed} of ${defective}`, null],
      ["Pixel AUROC", number(found.pixel.auroc), full.pixel_auroc], ["Pixel AP", number(found.pixel.ap), full.pixel_ap],
    ];
    const cell = (tag, text, properties = {}) => element(tag, { textContent: text, ...properties });
    table.replaceChildren(element("table", {},
      element("caption", { textContent: `${state.method.toUpperCase()}, ${state.category}, ` +
        `${all ? "all levels" : state.chosen.map((k) => symbol(levels[k].name)).join(" and ")}` }),
      element("thead", {}, element("tr", {}, cell("th", "Measure", { scope: "col" }), cell("th", "Here", { scope: "col" }),
        cell("th", "Full size, all levels", { scope: "col" }))),
      element("tbody", {}, ...rows.map(([name, here, whole]) => element("tr", {}, cell("th", name, { scope: "row" }),
        cell("td", here, { "data-measure": name }), cell("td", whole === null ? "" : number(whole)))))));
  }

  /* --- start ------------------------------------------------------------------------------------------------ */

  async function start() {
    index = await file("index");
    place.replaceChildren(controls, strip, element("div", { className: "live-columns" },
      element("div", {}, stage, verdict), element("div", {}, maps, switches, slider)),
      element("div", { className: "live-columns" }, curve, table), note);
    const seenBy = (c) => index.methods.filter((m) => m.categories.includes(c)).length;
    const category = index.categories.reduce((a, b) => (seenBy(b) > seenBy(a) ? b : a)); // that most methods have seen
    await choose({ category, method: index.methods[0].name });
    place.dataset.ready = "yes"; // for tests
  }

  start().catch((error) => { place.textContent = `The explorer could not start: ${error.message}`; });
})();
