// An exported model at work in a browser: two crops in, one person or two out. Nothing is sent anywhere.

const RUNTIME = new URL("./runtime/", import.meta.url).href;
// A function that returns a vector of 128 bits: only an engine with SIMD takes it.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const METADATA_PROPS = 14; // of ONNX's ModelProto
const page = {}; // the model, and the vector of each picture

/** An error that the user can mend: its text is shown as it is. */
class Mendable extends Error {}

/** What facemetric wrote into an ONNX file: the JSON text under `facemetric`, from the bytes of its ModelProto. */
export function metadataOf(bytes) {
  for (const [field, value] of fields(bytes)) {
    if (field !== METADATA_PROPS) continue;
    const entry = Object.fromEntries(fields(value));
    const text = (part) => new TextDecoder().decode(part);
    if (entry[1] && text(entry[1]) === "facemetric") return JSON.parse(text(entry[2]));
  }
  return null;
}

/** The fields of a protobuf message: [number, bytes]. Numbers are skipped. Throws where it is none. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0, scale = 1;
    for (;;) {
      if (at >= bytes.length || scale > 2 ** 56) throw new Error("cut short");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
      scale *= 128;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const wire = tag % 8;
    if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else if (wire === 2) {
      const end = varint() + at;
      if (end > bytes.length) throw new Error("cut short");
      yield [Math.floor(tag / 8), bytes.subarray(at, end)];
      at = end;
    } else throw new Error("no protobuf");
  }
}

/** ONNX Runtime for WebAssembly, from the folder beside this file. */
async function openRuntime(threads) {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new Mendable("This browser has no WebAssembly with SIMD, which ONNX Runtime needs. Take a newer one (Chrome 91, Firefox 89, Safari 16.4 or later).");
  }
  const ort = await import(RUNTIME + "ort.wasm.min.mjs").catch(() => {
    throw new Mendable("ONNX Runtime is not beside this page: python tools/browser_page.py brings it.");
  });
  ort.env.wasm.wasmPaths = RUNTIME;
  ort.env.wasm.numThreads = threads || (globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1);
  ort.env.logLevel = "error";
  return ort;
}

/** An exported model: {metadata, side, embed(pixels, count)}. Throws Mendable for a file that facemetric did not export. */
export async function openModel(buffer, { threads = 0 } = {}) {
  const bytes = new Uint8Array(buffer);
  let metadata;
  try {
    metadata = metadataOf(bytes);
  } catch {
    throw new Mendable("The file is no ONNX model. Make one with: facemetric export WEIGHTS");
  }
  const [side, width] = metadata?.crop ?? [];
  if (!metadata || !(side > 0) || side !== width || !metadata.thresholds) {
    throw new Mendable("The file is no model that facemetric exported: it does not say what it takes, nor from which cosine two pictures count as one person. Make one with: facemetric export WEIGHTS");
  }
  const ort = await openRuntime(threads);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Mendable(`The model cannot be run (${String(error.message ?? error).slice(0, 160)}). Export it again.`);
  }
  const embed = async (pixels, count) => {
    const images = new ort.Tensor("uint8", pixels, [count, side, side, 3]);
    return (await session.run({ [session.inputNames[0]]: images }))[session.outputNames[0]].data;
  };
  return { metadata, side, embed };
}

/** RGB pixels of a picture of side x side: a crop, or Mendable for what is none. */
export async function pixelsOf(file, side, canvas, isFace) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Mendable(`${file.name} is no picture that the browser can read.`);
  }
  if (Math.abs(image.width / image.height - 1) > 0.02) {
    const remedy = isFace ? "This page finds no faces: cut it first, with facemetric align photos/ --out faces/" : "Cut it to a square.";
    throw new Mendable(`${file.name} is ${image.width} x ${image.height} pixels, no square crop. ${remedy}`);
  }
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "black";
  context.fillRect(0, 0, side, side);
  context.drawImage(image, 0, 0, side, side);
  const rgba = context.getImageData(0, 0, side, side).data;
  const pixels = new Uint8Array(side * side * 3);
  for (let i = 0, k = 0; i < rgba.length; i += 4) {
    pixels[k++] = rgba[i];
    pixels[k++] = rgba[i + 1];
    pixels[k++] = rgba[i + 2];
  }
  return pixels;
}

/** The cosine of two unit vectors. */
export function cosine(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** The answer in words, of a cosine and a threshold's record. */
export function answer(score, stored) {
  const same = score >= stored.threshold;
  const [low, high] = stored.threshold_interval_95 ?? [];
  const range = low === undefined ? "" : ` [${low.toFixed(4)}, ${high.toFixed(4)}]`;
  return {
    same,
    headline: same ? "Same person" : "Different people",
    text: `cosine ${score.toFixed(4)} ${same ? ">=" : "<"} threshold ${stored.threshold.toFixed(4)}${range}\n` +
      `At this threshold ${stored.far.toPrecision(2)} of the pairs of two people pass for one, and ${stored.tar.toFixed(3)} of the pairs of one person are recognised; ` +
      `measured on ${stored.images} images of ${stored.identities} people: ${stored.chosen_on}.`,
  };
}

const element = (id) => document.getElementById(id);

/** Show an answer, or an error. */
function show(headline, text, wrong) {
  const strong = document.createElement("strong");
  strong.textContent = headline;
  element("answer").replaceChildren(strong, `\n${text}`);
  element("answer").classList.toggle("error", Boolean(wrong));
  element("answer").dataset.state = wrong ? "error" : headline ? "done" : "";
}

/** Run a step after those before it; an error that the user can mend is shown, a bug reaches the console too. */
function step(work) {
  page.last = (page.last ?? Promise.resolve()).then(work).catch((error) => {
    show("That did not work", error instanceof Mendable ? error.message : String(error), true);
    if (!(error instanceof Mendable)) console.error(error);
  });
  return page.last;
}

/** Take a model, and show what it is. */
async function useModel(buffer) {
  page.model = page.first = page.second = null;
  element("far").replaceChildren();
  const model = await openModel(buffer);
  const { metadata } = model;
  const fars = Object.values(metadata.thresholds).sort((a, b) => b.wanted_far - a.wanted_far);
  if (!fars.length) {
    throw new Mendable("The model holds no threshold, so that a cosine means nothing: run facemetric calibrate on its weights, then export again.");
  }
  page.thresholds = fars;
  page.model = model;
  const usual = fars.reduce((best, one, i) => (Math.abs(Math.log(one.wanted_far / 1e-3)) < Math.abs(Math.log(fars[best].wanted_far / 1e-3)) ? i : best), 0);
  element("far").append(...fars.map((one, i) => new Option(`one in ${Math.round(1 / one.wanted_far).toLocaleString("en")}`, i, false, i === usual)));
  const what = metadata.template ? `face crops of ${model.side} x ${model.side} pixels, cut to the template (facemetric align photos/ --out faces/); this page finds no faces itself` : `pictures of ${model.side} x ${model.side} pixels`;
  element("about").textContent = `${metadata.architecture}, ${metadata.embedding_size} numbers, weights ${String(metadata.weights_sha256).slice(0, 12)}. It takes ${what}.`;
  show("", "");
}

/** Embed the picture of an input, and compare where both are there. */
async function useFile(name) {
  const { model } = page;
  if (!model) return;
  page[name] = null;
  const [file] = element(name).files;
  if (!file) return show("", "");
  const pixels = await pixelsOf(file, model.side, element(`${name}_crop`), Boolean(model.metadata.template));
  page[name] = await model.embed(pixels, 1);
  compare();
}

/** Compare the two pictures by the threshold that is chosen. */
function compare() {
  if (!page.first || !page.second) return show("", "");
  page.score = cosine(page.first, page.second);
  const found = answer(page.score, page.thresholds[element("far").value]);
  element("answer").dataset.score = page.score;
  show(found.headline, found.text);
}

/** Bring the page to life: the model beside it, and what the user gives. */
export async function start() {
  for (const name of ["first", "second"]) element(name).addEventListener("change", () => step(() => useFile(name)));
  element("far").addEventListener("change", compare);
  element("model").addEventListener("change", () => step(async () => {
    await useModel(await element("model").files[0].arrayBuffer());
    for (const name of ["first", "second"]) await useFile(name);
  }));
  await step(async () => {
    const beside = await fetch("./model.onnx");
    if (!beside.ok) throw new Mendable("There is no model.onnx beside this page: put one there (facemetric export WEIGHTS), or choose one below.");
    await useModel(await beside.arrayBuffer());
  });
  document.body.dataset.ready = "yes";
}
