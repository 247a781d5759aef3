// Checks the playground in a real browser against a real server.
//
//   BASE_URL=http://127.0.0.1:8080/ node playground.mjs
//
// BASE_URL  where the page is
// CHROMIUM  the browser (/usr/bin/chromium)
// SHOTS     a folder for screenshots; none are taken without it
// STATIC=1  the page runs the model itself: its weights are waited for

import { readFileSync, mkdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import axe from "axe-core";
import { chromium } from "playwright-core";

const { BASE_URL = "http://127.0.0.1:8080/", CHROMIUM = "/usr/bin/chromium", SHOTS, STATIC } = process.env;
const FIXTURES = fileURLToPath(new URL("../fixtures", import.meta.url));
const DESK = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };
const ANSWER_MS = STATIC ? 120_000 : 30_000;
const LOAD_MS = STATIC ? 180_000 : 30_000;
// Its answers are known; of other models only the form is checked.
const KNOWN_MODEL = "flamingo-tiny-neox";

const errors = [];
const foreign = [];
let page;

const checks = {
  async "the page opens with a model and an example"() {
    await page.goto(BASE_URL);
    await modelReady();
    await page.locator("#demonstrations .card").first().waitFor();
    const sent = await page.locator("#sent").textContent();
    require(sent.includes("<|endofchunk|>"), `the assembled prompt is “${sent}”, without a demonstration`);
  },

  async "asking the example at once is answered"() {
    await answerBy(() => page.click("#ask"));
    await page.locator(".timings dd").first().waitFor();
    await shot("example");
  },

  async "dropped pictures become demonstrations and the question"() {
    await page.getByRole("button", { name: "Nothing yet" }).click();
    await page.getByRole("radio", { name: "Free" }).check();
    await drop("#demonstrations-title", ["emoji/crab.png", "emoji/light-bulb.png"]);
    await page.waitForFunction(() => document.querySelectorAll("#demonstrations .card").length === 2);
    await drop("#question", ["emoji/carrot.png"]);
    await page.locator("#question-picture:not([hidden])").waitFor();
  },

  async "what is no picture is refused with a sentence"() {
    await drop("#demonstrations-title", ["emoji/README.md"]);
    await page.getByRole("alert").filter({ hasText: "README.md" }).waitFor();
    require((await page.locator("#demonstrations .card").count()) === 2, "a text file became a demonstration");
  },

  async "a gap in the prompt is named, and focused"() {
    await page.click("#ask");
    await page.getByRole("alert").filter({ hasText: "Demonstration 1" }).waitFor();
    await expectFocus("Text of demonstration 1");
  },

  async "a few-shot prompt is answered"() {
    await page.getByLabel("Text of demonstration 1").fill("Output:nature");
    await page.getByLabel("Text of demonstration 2").fill("Output:object");
    await answerBy(() => page.keyboard.press("Control+Enter"));
    const answer = (await page.locator("#completion").textContent()).trim();
    const prompt = await page.locator("#sent").textContent();
    require(prompt.startsWith("Output:nature<|endofchunk|>Output:object<|endofchunk|>"), `the prompt was “${prompt}”`);
    if (await isKnownModel()) require(answer === "food", `a carrot among nature and object is “${answer}”, not “food”`);
  },

  async "a photograph is taken, too"() {
    await drop("#question", ["photos/chelsea.jpg"]);
    // The drawing before it was a square.
    await page.waitForFunction(() => {
      const { naturalWidth, naturalHeight } = document.querySelector("#question-picture");
      return naturalWidth > naturalHeight;
    });
    await answerBy(() => page.click("#ask"));
    const answer = (await page.locator("#completion").textContent()).trim();
    if (await isKnownModel()) require(["nature", "object", "food"].includes(answer), `a cat is “${answer}”`);
    // Other than the drawing, it is no square: the question's thumbnail shows all of it.
    const shown = await page.locator("#question-picture").evaluate((image) => image.naturalWidth / image.naturalHeight);
    require(Math.abs(shown - 451 / 300) < 0.05, `its sides are as ${shown} to 1`);
  },

  async "a caption arrives in pieces"() {
    await page.getByRole("button", { name: "Name the drawing" }).click();
    await page.getByLabel("Caption of demonstration 1").waitFor();
    await answerBy(() => page.click("#ask"));
    const pieces = await page.locator("#completion .piece").allTextContents();
    require(pieces.length > 1, `the answer came in one piece: “${pieces.join("")}”`);
    if (await isKnownModel()) require(/octopus/.test(pieces.join("")), `an octopus is “${pieces.join("")}”`);
  },

  async "a chosen token shows where it looked"() {
    await page.locator("#looks canvas.heat").first().waitFor({ timeout: ANSWER_MS });
    const chosen = page.locator(".token[aria-pressed=true]");
    require((await chosen.count()) === 1, "not exactly one token is chosen");
    require(/answered/.test(await chosen.getAttribute("class")), "the token chosen at first is not of the answer");
    const first = await heat();
    require(first.colours > 16, `the heat map has ${first.colours} colours only`);
    await chosen.focus();
    await page.keyboard.press("ArrowRight");
    await page.waitForFunction((before) => document.querySelector("#looks figcaption")?.textContent !== before, first.words);
    const second = await heat();
    require(second.colours > 16, `the second heat map has ${second.colours} colours only`);
    require(/looked at the question’s picture/.test(second.words), `the words are “${second.words}”`);
    await shot("look");
  },

  async "labels are classified with bars"() {
    await page.getByRole("button", { name: "Colours" }).click();
    await page.getByLabel("Label of demonstration 1").waitFor();
    await page.click("#ask");
    await page.locator("#bars tbody tr").first().waitFor({ timeout: ANSWER_MS });
    const rows = await page.locator("#bars tbody tr").evaluateAll((all) =>
      all.map((row) => ({
        label: row.querySelector("button").textContent,
        share: parseFloat(row.querySelector(".share .number").textContent),
      })),
    );
    const total = rows.reduce((sum, { share }) => sum + share, 0);
    require(rows.length === 5, `there are ${rows.length} bars for five labels`);
    require(Math.abs(total - 100) < 2, `the probabilities sum to ${total} %`);
    if (await isKnownModel()) require(rows[0].label === "orange", `a carrot's colour is “${rows[0].label}”`);
    await page.locator("#looks canvas.heat").first().waitFor({ timeout: ANSWER_MS });
    await page.locator("#bars button").nth(1).click();
    const answered = page.locator(".token.answered").filter({ hasText: new RegExp(`^·?${rows[1].label[0]}`) });
    await answered.first().waitFor({ timeout: ANSWER_MS });
    await shot("classify");
  },

  async "demonstrations are reordered by keyboard"() {
    await page.getByRole("button", { name: "Move demonstration 1 down" }).focus();
    await page.keyboard.press("Enter");
    require((await page.getByLabel("Label of demonstration 2").inputValue()) === "red", "the first did not become the second");
    await expectFocus("Move demonstration 2 down");
    await page.getByRole("status").filter({ hasText: "Moved to place 2 of 2" }).waitFor({ state: "attached" });
  },

  async "demonstrations are reordered by dragging"() {
    const grip = await page.locator(".grip").nth(1).boundingBox();
    await page.mouse.move(grip.x + 10, grip.y + 10);
    await page.mouse.down();
    await page.mouse.move(grip.x + 10, grip.y - 60, { steps: 8 });
    await page.mouse.move(grip.x + 10, grip.y - 110, { steps: 8 });
    await page.mouse.up();
    require((await page.getByLabel("Label of demonstration 1").inputValue()) === "red", "the second did not become the first");
  },

  async "a reload keeps what was written"() {
    await page.getByLabel("Label of demonstration 1").fill("crimson");
    await page.waitForFunction(() => Object.values(sessionStorage).some((saved) => saved.includes("crimson")));
    await page.reload();
    await page.getByLabel("Label of demonstration 1").waitFor();
    require((await page.getByLabel("Label of demonstration 1").inputValue()) === "crimson", "the label is gone");
    await modelReady();
  },

  async "axe finds nothing where labels are classified"() {
    await page.click("#ask");
    await page.locator("#looks canvas.heat").first().waitFor({ timeout: ANSWER_MS });
    await audit();
  },

  async "axe finds nothing where a question is answered, with the settings open"() {
    await page.getByRole("button", { name: "Questions about shapes" }).click();
    await page.locator("#settings summary").click();
    await answerBy(() => page.click("#ask"));
    const answer = (await page.locator("#completion").textContent()).trim();
    if (await isKnownModel()) require(answer === "circle", `a circle is “${answer}”`);
    await page.locator("#looks canvas.heat").first().waitFor({ timeout: ANSWER_MS });
    await audit();
  },

  async "axe finds nothing where something is refused"() {
    await drop("#demonstrations-title", ["emoji/README.md"]);
    await page.getByRole("alert").filter({ hasText: "README.md" }).waitFor();
    await audit();
  },

  async "nothing scrolls sideways on a phone"() {
    await page.setViewportSize(PHONE);
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    require(width <= PHONE.width, `the page is ${width} pixels wide on a screen of ${PHONE.width}`);
  },

  async "the console holds no error and no other host was asked"() {
    require(!errors.length, `the console says: ${errors[0]}`);
    require(!foreign.length, `the page asked ${foreign[0]}`);
  },
};

function require(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

async function modelReady() {
  const name = page.locator("#model-name");
  await name.filter({ hasNotText: "Looking for" }).waitFor({ state: "attached", timeout: LOAD_MS });
  const found = await name.textContent();
  require(found !== "No model yet", `the page says: ${await page.getByRole("alert").textContent()}`);
}

async function isKnownModel() {
  return (await page.locator("#model-name").textContent()) === KNOWN_MODEL;
}

async function expectFocus(name) {
  const focused = await page.evaluate(() => {
    const element = document.activeElement;
    return element.ariaLabel ?? element.labels?.[0]?.textContent ?? element.tagName;
  });
  require(focused === name, `the focus is at “${focused}”, not at “${name}”`);
}

/** Does what asks, and waits for the end of a written answer. */
async function answerBy(act) {
  await act();
  const outcome = page.locator("#answer:not(.running) .piece, [role=alert]:not(:empty)").first();
  await outcome.waitFor({ timeout: ANSWER_MS });
  const complaint = await page.getByRole("alert").textContent();
  require(!complaint, `the page says: ${complaint}`);
}

/** Looks for faults of accessibility, in light and dark, at desk and phone. */
async function audit() {
  await page.evaluate(axe.source);
  for (const [name, size] of [["desk", DESK], ["phone", PHONE]]) {
    await page.setViewportSize(size);
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      const { violations } = await page.evaluate(() => window.axe.run());
      const found = violations.map(({ id, nodes }) => `${id} at ${nodes[0].target}`).join("; ");
      require(!violations.length, `${name}, ${colorScheme}: ${found}`);
      await shot(`${name}-${colorScheme}`);
    }
  }
  await page.setViewportSize(DESK);
}

async function drop(selector, names) {
  const types = { ".png": "image/png", ".jpg": "image/jpeg", ".md": "text/markdown" };
  const files = names.map((name) => ({
    name: path.basename(name),
    type: types[path.extname(name)],
    base64: readFileSync(path.join(FIXTURES, name)).toString("base64"),
  }));
  const dataTransfer = await page.evaluateHandle((all) => {
    const transfer = new DataTransfer();
    for (const { name, type, base64 } of all) {
      const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type }));
    }
    return transfer;
  }, files);
  for (const event of ["dragenter", "dragover", "drop"]) await page.dispatchEvent(selector, event, { dataTransfer });
}

/** How many colours the heat map has, and what is said about it. */
async function heat() {
  return page.evaluate(() => {
    const canvas = document.querySelector("#looks canvas.heat");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const colours = new Set(new Uint32Array(data.buffer)).size;
    return { colours, words: document.querySelector("#looks figcaption").textContent };
  });
}

async function shot(name) {
  if (SHOTS) await page.screenshot({ path: path.join(SHOTS, `${name}.png`), fullPage: true });
}

async function open() {
  if (SHOTS) mkdirSync(SHOTS, { recursive: true });
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  const context = await browser.newContext({ viewport: DESK, colorScheme: "light" });
  context.setDefaultTimeout(10_000);
  const { origin } = new URL(BASE_URL);
  context.on("request", (request) => {
    const { protocol, origin: asked } = new URL(request.url());
    if (protocol.startsWith("http") && asked !== origin) foreign.push(request.url());
  });
  page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(error.message));
  return browser;
}

let passed = 0;
let failed = 0;
const browser = await open();
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    passed += 1;
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${name}: ${error.message.split("\n")[0]}`);
    await shot("failed");
    break;
  }
}
await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
