/* Draw a defect: the reader paints on a good image, and exported detectors look at it in the browser. */
(function () {
  "use strict";

  const { PX, drawMap, element, number, select, symbol } = self.uadShow;
  const HERE = new URL(".", document.currentScript.src);
  const PLAIN = { scratch: 1, stain: 6, erase: 9 }; // radius of a stroke in pixels of the image
  const TOOLS = [["scratch", "scratch"], ["stain", "stain"], ["erase", "erase a part"]];

  const place = document.getElementById("draw");
  const part = (name, tag = "div", properties = {}) => element(tag, { className: `live-${name}`, ...properties });
  const status = part("verdict", "p", { role: "status" }), results = part("results");
  const controls = part("controls"), buttons = part("buttons");
  const sheet = element("canvas", { width: PX, height: PX, className: "live-sheet", role: "img",
    "aria-label": "The image that you paint on" });
  const pen = sheet.getContext("2d", { willReadFrequently: true });
  const state = { image: 0, tool: "scratch", size: 1 };
  let about, sessions, before = [], backdrop = "#ccc", running = false, again = false;

  /* --- files ------------------------------------------------------------------------------------------------ */

  function script(url) {
    return new Promise((resolve, reject) => {
      const tag = element("script", { src: url.href });
      tag.onload = resolve;
      tag.onerror = () => reject(new Error(`${url.pathname.split("/").pop()} is missing`));
      document.head.append(tag);
    });
  }

  /* A compressed file; some servers take the compression off by themselves. */
  async function unzipped(name) {
    const response = await fetch(new URL(name, HERE));
    if (!response.ok) throw new Error(`${name} is missing`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function startEngine() {
    try {
      await script(new URL("engine/ort.wasm.min.js", HERE));
    } catch {
      throw new Error("this copy of the book was built without network and lacks the engine, onnxruntime-web. "
        + "Build it again with a network: make book");
    }
    const engine = await unzipped("engine/ort-wasm-simd.wasm.gz");
    self.ort.env.wasm.numThreads = 1;
    self.ort.env.wasm.wasmPaths = { "ort-wasm-simd.wasm": URL.createObjectURL(new Blob([engine], { type: "application/wasm" })) };
    sessions = [];
    for (const { method } of about.models)
      sessions.push(await self.ort.InferenceSession.create(await unzipped(`models/${method}.onnx.gz`), { executionProviders: ["wasm"] }));
  }

  /* --- painting --------------------------------------------------------------------------------------------- */

  async function open(i) {
    const image = new Image();
    image.src = `data:image/webp;base64,${about.images[i]}`;
    await image.decode();
    pen.drawImage(image, 0, 0, PX, PX);
    before = [];
    backdrop = `rgb(${pen.getImageData(3, 3, 1, 1).data.slice(0, 3).join(",")})`;
    await look();
  }

  function stroke(points) {
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * state.size * PLAIN[state.tool];
    pen.strokeStyle = { scratch: "rgba(235, 230, 220, 0.8)", stain: "rgba(40, 30, 20, 0.35)", erase: backdrop }[state.tool];
    pen.beginPath();
    pen.moveTo(...points[0]);
    for (const point of points.length > 1 ? points.slice(1) : points) pen.lineTo(...point);
    pen.stroke();
  }

  function keep() {
    before.push(pen.getImageData(0, 0, PX, PX));
    if (before.length > 20) before.shift();
  }

  function watchPointer() {
    let points = null, ground;
    const at = (event) => {
      const box = sheet.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * PX, ((event.clientY - box.top) / box.height) * PX];
    };
    sheet.onpointerdown = (event) => {
      sheet.setPointerCapture(event.pointerId);
      keep();
      ground = before[before.length - 1];
      points = [at(event)];
      stroke(points);
    };
    sheet.onpointermove = (event) => {
      if (!points) return;
      points.push(at(event));
      pen.putImageData(ground, 0, 0); // a stroke is drawn whole, so that a transparent one does not cover itself
      stroke(points);
    };
    sheet.onpointerup = sheet.onpointercancel = () => {
      points = null;
      look();
    };
  }

  /* For who has no pointer: a straight stroke somewhere on the product. */
  function anywhere() {
    keep();
    const [x, y, turn] = [0, 0, 0].map(Math.random), length = 25 + 30 * Math.random();
    const from = [PX * (0.3 + 0.4 * x), PX * (0.3 + 0.4 * y)];
    stroke([from, [from[0] + length * Math.cos(6.28 * turn), from[1] + length * Math.sin(6.28 * turn)]]);
    look();
  }

  function undo() {
    if (before.length) pen.putImageData(before.pop(), 0, 0);
    look();
  }

  /* --- looking ---------------------------------------------------------------------------------------------- */

  /* The sheet as images (1, 3, H, W) in [0, 1]. */
  function tensor() {
    const { data } = pen.getImageData(0, 0, PX, PX), values = new Float32Array(3 * PX * PX);
    for (let i = 0; i < PX * PX; i++)
      for (let c = 0; c < 3; c++) values[c * PX * PX + i] = data[4 * i + c] / 255;
    return new self.ort.Tensor("float32", values, [1, 3, PX, PX]);
  }

  /* All detectors look; what was painted meanwhile is looked at afterwards. */
  async function look() {
    if (!sessions) return;
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      const images = tensor(), texts = [];
      for (const [k, model] of about.models.entries()) {
        const start = performance.now(), found = await sessions[k].run({ images });
        texts.push(show(model, found, performance.now() - start));
        await new Promise(requestAnimationFrame);
      }
      status.textContent = texts.join(" ");
      status.classList.add("live-heard"); // the results say it to who sees them
    } while (again);
    running = false;
    place.dataset.looked = Number(place.dataset.looked || 0) + 1; // for tests
  }

  /* Show what a detector found, and return it in words. */
  function show(model, found, milliseconds) {
    const score = found.scores.data[0], called = score > model.threshold ? "anomalous" : "normal";
    const names = [...model.names.residuals, "maps"];
    const figures = names.map((name) => {
      const [, h, w] = found[name].dims, map = found[name].data;
      model.scale ||= {};
      model.scale[name] ||= 3 * map.reduce((a, b) => Math.max(a, b)); // of the good image that is looked at first
      const canvas = element("canvas", { width: 128, height: 128, role: "img", "data-output": name,
        "aria-label": `${model.method.toUpperCase()}: ${name === "maps" ? "anomaly map" : `residual level ${symbol(name)}`}` });
      drawMap(canvas, map, h, w, model.scale[name]);
      return element("figure", {}, canvas, element("figcaption", { textContent: name === "maps" ? "map" : symbol(name) }));
    });
    const name = model.method.toUpperCase();
    const text = `${name}: score ${number(score)}, threshold ${number(model.threshold)}: ${called}.`;
    const box = element("section", { className: "live-result" }, element("p", {}, element("strong", { textContent: `${name} ` }),
      element("span", { className: `live-called-${called}`, textContent: called }),
      ` score ${number(score)}, threshold ${number(model.threshold)}; ${milliseconds.toFixed(0)} ms`),
    element("div", { className: "live-maps live-maps-4" }, ...figures));
    box.dataset.method = model.method;
    model.last = { score, map: found.maps.data, size: found.maps.dims.slice(1) };
    const old = results.querySelector(`[data-method="${model.method}"]`);
    old ? old.replaceWith(box) : results.append(box);
    return text;
  }

  /* --- start ------------------------------------------------------------------------------------------------ */

  function layOut() {
    const size = element("input", { type: "range", min: 0.5, max: 3, step: 0.25, value: 1 });
    size.oninput = () => { state.size = Number(size.value); };
    controls.replaceChildren(
      select("Image", about.images.map((_, i) => [String(i), `good ${i + 1}`]), "0", (i) => { open(Number(i)); }),
      select("Tool", TOOLS, "scratch", (tool) => { state.tool = tool; }),
      element("label", { className: "live-field" }, "Size", size),
    );
    const button = (textContent, onclick) => element("button", { type: "button", textContent, onclick });
    const fresh = () => open(Number(controls.querySelector("select").value));
    buttons.replaceChildren(button("Undo", undo), button("Clean image", fresh), button("A stroke somewhere", anywhere));
    place.replaceChildren(controls, element("div", { className: "live-columns" },
      element("div", {}, sheet, buttons, status), results));
  }

  function explain(error) {
    if (location.protocol === "file:") {
      const folder = decodeURIComponent(location.pathname).split("/").slice(0, -2).join("/");
      const command = `python3 -m http.server --directory "${folder}" 8000`;
      status.replaceChildren("You opened this page from disk, and your browser lets such a page load no detectors. Serve the "
        + "book with one command, and open ", element("code", { textContent: "http://localhost:8000/book/draw.html" }), ":",
      element("pre", {}, element("code", { textContent: command })));
    } else {
      status.textContent = `The detectors could not start: ${error.message}.`;
    }
    place.dataset.failed = "yes"; // for tests
  }

  async function start() {
    self.uadData = (_, content) => { about = content; };
    await script(new URL("models/models.js", HERE));
    layOut();
    watchPointer();
    await open(0);
    status.textContent = "Loading the detectors …";
    await startEngine();
    await look();
    place.dataset.ready = "yes"; // for tests
  }

  self.uadDraw = { last: () => Object.fromEntries(about.models.map((m) => [m.method, m.last])) };
  start().catch(explain);
})();
