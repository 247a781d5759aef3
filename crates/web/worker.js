// The model in this browser, behind the same requests as the server (crates/serve/assets/client.js says how it is talked to):
//
//   page → worker   {id, method: "models" | "complete" | "score" | "attention", request}, {id, method: "cancel"}
//   worker → page   {id, event: "piece", data}, {id, event: "result", data}, {id, event: "error", message},
//                   {event: "progress", loaded, total} while the model loads
//
// Requests are answered one after the other, in the order in which they came.

import init, { Flamingo, Pictures } from "./flamingo_web.js";

const FOLDER = new URL("model/", import.meta.url);
const BROKEN = "The model failed and has stopped: reload the page.";

/** Requests that are neither answered nor cancelled. */
const open = new Set();
let queue = Promise.resolve();
let model = null;
let broken = false;

self.onmessage = ({ data: { id, method, request } }) => {
  if (method === "cancel") {
    open.delete(id);
    return;
  }
  if (broken) {
    postMessage({ id, event: "error", message: BROKEN });
    return;
  }
  const asked = performance.now();
  open.add(id);
  queue = queue.then(() => answer(id, method, request, asked));
};

// A trap in an asynchronous call rejects no promise: it is heard of here only, and what awaits the call waits for ever.
self.onerror = self.onunhandledrejection = fail;

/** Answers all requests: a program that has failed in the middle of something can do nothing any more. */
function fail() {
  broken = true;
  for (const id of open) postMessage({ id, event: "error", message: BROKEN });
  open.clear();
  // The page is told, and needs no event of its own.
  return true;
}

async function answer(id, method, request, asked) {
  const waited = performance.now() - asked;
  try {
    if (!Object.hasOwn(METHODS, method)) throw new Error(`There is no method ${method}.`);
    checkOpen(id);
    const data = await METHODS[method](await ready(), request, id);
    checkOpen(id);
    if (data.flamingo) data.flamingo.timings.queue_ms = waited;
    postMessage({ id, event: "result", data });
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError) fail();
    else postMessage({ id, event: "error", message: error.message });
  } finally {
    open.delete(id);
  }
}

function checkOpen(id) {
  if (!open.has(id)) throw new Error("The request was cancelled.");
}

const METHODS = {
  async models(model) {
    return JSON.parse(model.models());
  },

  async complete(model, request, id) {
    const onStep = async (pieces) => {
      for (const piece of pieces) postMessage({ id, event: "piece", data: JSON.parse(piece) });
      await turn();
      return open.has(id);
    };
    const pictures = await look(request, id);
    return JSON.parse(await model.complete(JSON.stringify(request), pictures, onStep));
  },

  async score(model, request, id) {
    return JSON.parse(model.score(JSON.stringify(request), await look(request, id)));
  },

  async attention(model, request, id) {
    return JSON.parse(model.attention(JSON.stringify(request), await look(request, id)));
  },
};

/** Lets what has been posted to this worker arrive. Timers would wait four milliseconds each. */
function turn() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** The pictures of a prompt. */
async function look({ prompt }, id) {
  const pictures = new Pictures();
  try {
    for (const part of Array.isArray(prompt) ? prompt : []) {
      if (part.type === "image_url") await add(pictures, part.image_url?.url);
      checkOpen(id);
    }
  } catch (error) {
    // After a trap nothing of the program may be touched.
    if (!(error instanceof WebAssembly.RuntimeError)) pictures.free();
    throw error;
  }
  return pictures;
}

async function add(pictures, url) {
  if (!url?.startsWith("data:")) throw new Error("A picture is given by a data: URL.");
  const file = new Uint8Array(await (await fetch(url)).arrayBuffer());
  if (!pictures.addFile(file)) {
    const { width, height, data } = await decode(Pictures.asStored(file));
    pictures.addPixels(width, height, data);
  }
  await turn();
}

/** The pixels of a picture file that the browser can decode. */
async function decode(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([file]), options).catch(() => {
    throw new Error("This browser cannot decode the picture.");
  });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.getImageData(0, 0, width, height);
}

/** The model, loaded once; a download that failed is begun anew by the next request. */
function ready() {
  model ??= load().catch((error) => {
    model = null;
    throw error;
  });
  return model;
}

/** Fetches the program and the model's files, which `files.json` lists with their sizes. */
async function load() {
  const files = await (await get("files.json")).json();
  const total = Object.values(files).reduce((sum, size) => sum + size, 0);
  let loaded = 0;
  const read = async (name) => {
    if (!(name in files)) return undefined;
    const content = new Uint8Array(files[name]);
    const reader = (await get(name)).body.getReader();
    let at = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (at + part.value.length > content.length) throw new Error(`The model's file ${name} is longer than files.json says.`);
      content.set(part.value, at);
      at += part.value.length;
      loaded += part.value.length;
      postMessage({ event: "progress", loaded, total });
    }
    if (at < content.length) throw new Error(`The model's file ${name} is not complete.`);
    return content;
  };
  const names = ["model.toml", "model.safetensors", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"];
  const [, config, ...others] = await Promise.all([
    init({ module_or_path: new URL("flamingo_web_bg.wasm", import.meta.url) }),
    ...names.map(read),
  ]);
  return new Flamingo(new TextDecoder().decode(config), ...others);
}

async function get(name) {
  const response = await fetch(new URL(name, FOLDER));
  if (!response.ok) throw new Error(`The model's file ${name} is not there (status ${response.status}).`);
  return response;
}
