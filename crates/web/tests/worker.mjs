// Asks a site that `cargo xtask web` made, in Node in place of a browser: node crates/web/tests/worker.mjs SITE
// Prints the answers to a prompt with demonstrations and to a question with candidates, as JSON.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const site = pathToFileURL(`${process.argv[2]}/`);
const pictures = new URL("../../../tests/fixtures/emoji/", import.meta.url);

// What a worker has and Node has not: files by fetch, and the page behind it.
const fetched = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  if (new URL(url).protocol !== "file:") return fetched(url, options);
  const type = String(url).endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
  return new Response(await readFile(new URL(url)), { headers: { "content-type": type } });
};
globalThis.self = globalThis;
const waiting = new Map();
const pieces = [];
let onPiece = () => {};
globalThis.postMessage = ({ id, event, data, message }) => {
  if (event === "piece") {
    pieces.push(data.choices[0].text);
    onPiece(id);
  }
  if (event === "result") waiting.get(id).resolve(data);
  if (event === "error") waiting.get(id).reject(new Error(message));
};

function ask(id, method, request) {
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    self.onmessage({ data: { id, method, request } });
  });
}

async function picture(name) {
  const file = await readFile(new URL(`${name}.png`, pictures));
  return { type: "image_url", image_url: { url: `data:image/png;base64,${file.toString("base64")}` } };
}

async function prompt(...texts) {
  const shown = ["crab", "light-bulb", "carrot"];
  const parts = await Promise.all(texts.map(async (text, i) => [await picture(shown[i]), { type: "text", text }]));
  return parts.flat();
}

function expect(found, wanted) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

await import(new URL("worker.js", site));
const models = await ask(1, "models", {});

const categories = await prompt("Output:nature<|endofchunk|>", "Output:object<|endofchunk|>", "Output:");
const request = { prompt: categories, max_tokens: 12, temperature: 0, logprobs: 5 };
const completion = await ask(2, "complete", request);
expect(completion.choices[0].text, "food");
expect(pieces.join(""), "food");
expect((await ask(3, "complete", request)).flamingo.images, { seen: 3, cached: 3 });

const colours = await prompt("Output:red<|endofchunk|>", "Output:yellow<|endofchunk|>", "Output:");
const score = await ask(4, "score", { prompt: colours, candidates: ["orange", "green", "blue"] });

const attention = await ask(5, "attention", { prompt: categories, completion: "food" });
expect(attention.tokens.at(-1).looks[0].image, 2);

// A continuation that is called off while it is written ends with the piece after which that was heard.
pieces.length = 0;
onPiece = (id) => self.onmessage({ data: { id, method: "cancel" } });
const long = ask(6, "complete", { prompt: "A picture of", max_tokens: 400, temperature: 2, seed: 1 });
expect(await long.catch((error) => error.message), "The request was cancelled.");
expect(pieces.length, 1);
expect(await ask(7, "another", {}).catch((error) => error.message), "There is no method another.");
expect(await ask(8, "score", { prompt: "Output:", candidates: [""] }).catch((error) => error.message.split(":")[0]), "candidate 1 is empty");

console.log(JSON.stringify({ models, completion, score }, null, 1));
