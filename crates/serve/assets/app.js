// The playground: holds the state, and connects the parts of the page with the model.

import { AnswerView, percent, showPrompt } from "./answer.js";
import { HttpClient, ModelError, WorkerClient } from "./client.js";
import { DemonstrationList } from "./demonstrations.js";
import { element, textField } from "./dom.js";
import { LookView } from "./look.js";
import { fetchPicture, readPicture } from "./pictures.js";
import { TASKS, assemble, candidates, carryOver, firstGap, questionValues, requestParts } from "./prompt.js";
import { DEFAULT_SETTINGS, emptyState, restore, save } from "./store.js";

const byId = (id) => document.getElementById(id);
const announce = (text) => (byId("status").textContent = text);

const transport = document.querySelector("meta[name=flamingo-transport]").content;
const client = transport === "worker" ? new WorkerClient(showProgress) : new HttpClient();
const answer = new AnswerView();
const look = new LookView();
const list = new DemonstrationList(byId("demonstrations"), byId("demonstration-template"), { announce, onChange: changed });

let state = emptyState();
// Whether the state is a user's: then a reload brings it back, and no example takes its place by itself.
let touched = false;
let beforeExample = null;
let models = [];
let model = null;
// What aborts the answer that is being written, and the look at attention that follows it.
let asking = null;
let looking = null;

/** Shows what went wrong in one sentence, or takes it away. */
function warn(sentence) {
  byId("alert").textContent = sentence;
  if (sentence) byId("alert").scrollIntoView({ block: "nearest" });
}

// The state and the page

function changed() {
  keep();
  showSent();
}

function keep() {
  touched = true;
  save(state);
}

function showSent() {
  showPrompt(byId("sent"), assemble(state, model));
  byId("candidates-all").textContent = `All labels: ${candidates(state).join(", ") || "none yet"}`;
}

function showAll() {
  const task = TASKS[state.task];
  byId(`task-${state.task}`).checked = true;
  byId("task-about").textContent = task.about;
  list.show(state.demonstrations, state.task, model);
  showQuestion(task);
  showSettings();
  showSent();
}

function showQuestion(task) {
  const values = questionValues(state, model);
  const takeOver = () => {
    for (const { key } of task.questionFields) state.question.values[key] = values[key];
    changed();
  };
  const options = { of: "of the question", model, onInput: takeOver };
  byId("question-fields").replaceChildren(...task.questionFields.map((field) => textField(field, values, options)));
  byId("candidates-field").hidden = !task.scored;
  byId("candidates").value = state.candidates.join(", ");
  byId("settings").hidden = Boolean(task.scored);
  showQuestionPicture();
}

function showQuestionPicture() {
  const { picture } = state.question;
  const image = byId("question-picture");
  image.hidden = !picture;
  if (picture) {
    image.src = picture.url;
    image.alt = picture.name;
  }
  byId("question-picture-label").textContent = picture ? "Replace" : "Choose a picture";
}

function chooseTask(task) {
  for (const demonstration of state.demonstrations) {
    demonstration.values = carryOver(state.task, task, demonstration.values, model);
  }
  state.task = task;
  keep();
  showAll();
}

function buildTasks() {
  for (const [id, { name }] of Object.entries(TASKS)) {
    const input = element("input");
    Object.assign(input, { type: "radio", name: "task", id: `task-${id}`, value: id });
    input.addEventListener("change", () => chooseTask(id));
    const label = element("label");
    label.append(input, name);
    byId("tasks").append(label);
  }
}

// Settings

function showSettings() {
  const { stop, ...numbers } = state.settings;
  for (const [key, value] of Object.entries(numbers)) byId(key).value = value ?? "";
  byId("stop").value = stop.join("\n");
}

function connectSettings() {
  const details = byId("settings");
  details.addEventListener("input", () => {
    for (const key of ["max_tokens", "temperature", "top_p", "seed"]) {
      const number = byId(key).valueAsNumber;
      state.settings[key] = Number.isNaN(number) ? null : number;
    }
    state.settings.stop = byId("stop").value.split("\n").filter(Boolean);
    changed();
  });
  // A field that the form finds fault with must be seen.
  details.addEventListener("invalid", () => (details.open = true), true);
}

// Pictures

async function readAll(files) {
  const pictures = [];
  warn("");
  for (const file of files) {
    try {
      pictures.push(await readPicture(file));
    } catch (error) {
      warn(error.message);
    }
  }
  return pictures;
}

async function addDemonstrations(files) {
  const pictures = await readAll(files);
  if (!pictures.length) return;
  const first = state.demonstrations.length;
  state.demonstrations.push(...pictures.map((picture) => ({ picture, values: {} })));
  list.show(state.demonstrations, state.task, model);
  changed();
  list.focus(first);
  const added = pictures.length === 1 ? "1 demonstration" : `${pictures.length} demonstrations`;
  announce(`${added} added, ${state.demonstrations.length} in all.`);
}

async function setQuestionPicture(files) {
  const [picture] = await readAll([...files].slice(0, 1));
  if (!picture) return;
  state.question.picture = picture;
  showQuestionPicture();
  changed();
  announce("The question has a new picture.");
}

/** What is dropped or pasted at the question is its picture; anywhere else it is a new demonstration. */
function takeFiles(files, target) {
  if (!files.length) return;
  if (byId("question").contains(target)) setQuestionPicture(files);
  else addDemonstrations(files);
}

function connectPictures() {
  for (const [id, take] of [["add-files", addDemonstrations], ["question-file", setQuestionPicture]]) {
    byId(id).addEventListener("change", async ({ target }) => {
      await take([...target.files]);
      // So that the same file can be chosen again.
      target.value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    takeFiles([...event.clipboardData.files], event.target);
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
    byId("question").classList.toggle("under", byId("question").contains(event.target));
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) endDrop();
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    endDrop();
    takeFiles([...event.dataTransfer.files], event.target);
  });
}

function endDrop() {
  document.body.classList.remove("dropping");
  byId("question").classList.remove("under");
}

// Examples

async function buildExamples() {
  const response = await fetch("assets/examples.json");
  const examples = await response.json();
  for (const example of examples) {
    addExample(example.name, example.about, async () => {
      replaceState(await stateOf(example));
      announce(`Example “${example.name}” loaded.`);
    });
  }
  addExample("Nothing yet", "Start with your own pictures.", () => replaceState(emptyState()));
  return examples;
}

function addExample(name, about, load) {
  const button = element("button", "example");
  button.type = "button";
  button.append(element("strong", "", name), element("span", "", about));
  button.addEventListener("click", () => Promise.resolve(load()).catch((error) => warn(error.message)));
  const item = element("li");
  item.append(button);
  byId("examples").append(item);
}

async function stateOf(example) {
  const load = async ({ picture, ...values }) => ({ picture: await fetchPicture(`assets/examples/${picture}`), values });
  return {
    task: example.task,
    demonstrations: await Promise.all(example.demonstrations.map(load)),
    question: await load(example.question),
    candidates: example.candidates ?? [],
    settings: { ...DEFAULT_SETTINGS, ...example.settings },
  };
}

function replaceState(next) {
  beforeExample = state;
  state = next;
  byId("undo").hidden = false;
  clearAnswer();
  keep();
  showAll();
}

function undo() {
  replaceState(beforeExample);
  byId("undo").hidden = true;
  byId("examples").querySelector("button").focus();
  announce("What was here before is back.");
}

// The model

async function findModels(signal) {
  ({ data: models } = await client.models(signal));
  const select = byId("model-select");
  select.replaceChildren(...models.map(({ id }) => new Option(id, id)));
  const choice = models.length > 1;
  select.hidden = !choice;
  select.labels[0].hidden = !choice;
  byId("model-name").hidden = choice;
  byId("model-progress").hidden = true;
  useModel(models[0]);
}

function useModel(chosen) {
  model = chosen;
  const { device, precision, parameters, max_tokens } = model.flamingo;
  byId("model-name").textContent = model.id;
  byId("model-facts").textContent = [device, precision, parameters && `${short(parameters)} parameters`]
    .filter(Boolean)
    .join(" · ");
  if (max_tokens) byId("max_tokens").max = max_tokens;
  // Fields are made anew only where the model has a say in them: somebody may be writing in one.
  if (state.task === "caption") showAll();
  else showSent();
}

function short(count) {
  const [unit, name] = count >= 1e9 ? [1e9, "B"] : [1e6, "M"];
  return `${(count / unit).toFixed(count < 10 * unit ? 1 : 0)} ${name}`;
}

function showProgress(loaded, total) {
  const bar = byId("model-progress");
  bar.hidden = loaded >= total;
  bar.max = total;
  bar.value = loaded;
  byId("model-facts").textContent = `loading ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
}

// Asking

async function ask() {
  const gap = firstGap(state, model);
  if (gap) return showGap(gap);
  stopAll();
  const controller = new AbortController();
  asking = controller;
  setAsking(true);
  let pieces = null;
  let answered = null;
  try {
    if (!model) await findModels(controller.signal);
    pieces = assemble(state, model);
    answered = await (TASKS[state.task].scored ? classify : complete)(pieces, controller.signal);
  } catch (error) {
    if (!isCurrent(controller.signal)) return;
    const stopped = error.name === "AbortError";
    answer.end(stopped ? "Stopped." : "");
    if (!stopped) warn(sentence(error));
  }
  if (!isCurrent(controller.signal)) return;
  asking = null;
  setAsking(false);
  if (answered) await showLook(pieces, answered);
}

/** Whether what `signal` stops is still asked: after another question or another example its answer is to nothing on the page. */
function isCurrent(signal) {
  return asking?.signal === signal;
}

/** Streams the answer and returns its text; one that is stopped keeps what is there. */
async function complete(pieces, signal) {
  const began = performance.now();
  let text = "";
  let end = null;
  try {
    for await (const part of client.complete(completionRequest(pieces), signal)) {
      if (!isCurrent(signal)) return null;
      if (part.done) end = part;
      else {
        answer.piece(part.text);
        text += part.text;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  if (!isCurrent(signal)) return null;
  answer.end(end ? endingOf(text, end.finish_reason) : "Stopped.");
  if (end) answer.showTimings(end.flamingo, end.usage, performance.now() - began);
  announce(`${end ? "Answer" : "Stopped"}: ${text.trim() || "no text"}`);
  return text;
}

function completionRequest(pieces) {
  const { seed, stop, ...sampling } = state.settings;
  return {
    ...question(pieces),
    ...sampling,
    ...(seed !== null && { seed }),
    ...(stop.length && { stop }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

const question = (pieces) => ({ model: model.id, prompt: requestParts(pieces) });

function endingOf(text, reason) {
  if (!text) return "The model ended its answer at once, with no text.";
  return reason === "length" ? "Broken off at the most tokens that the settings allow." : "";
}

/** Shows bars and returns the likeliest candidate. */
async function classify(pieces, signal) {
  const began = performance.now();
  const { data, flamingo, usage } = await client.score({ ...question(pieces), candidates: candidates(state) }, signal);
  if (!isCurrent(signal)) return null;
  answer.end();
  answer.showBars(data, (candidate) => showLook(pieces, candidate));
  answer.showTimings(flamingo, usage, performance.now() - began);
  const best = data.reduce((a, b) => (b.probability > a.probability ? b : a));
  announce(`Most likely: ${best.candidate.trim()}, ${percent(best.probability)}.`);
  return best.candidate;
}

async function showLook(pieces, completion) {
  looking?.abort();
  looking = new AbortController();
  const { signal } = looking;
  try {
    const attention = await client.attention({ ...question(pieces), completion }, signal);
    if (signal.aborted) return;
    await look.show(attention, pieces.filter(({ picture }) => picture).map(({ picture }) => picture));
  } catch (error) {
    if (!signal.aborted) look.fail(`This cannot be shown: ${sentence(error)}`);
  }
}

function sentence(error) {
  return error instanceof ModelError ? error.message : `Something in this page went wrong: ${error.message}`;
}

function stopAll() {
  asking?.abort();
  looking?.abort();
}

function clearAnswer() {
  stopAll();
  asking = null;
  setAsking(false);
  look.hide();
  answer.start();
  answer.end("Ask, and the answer is written here.");
}

function setAsking(running) {
  const stopButton = byId("stop-asking");
  const moveFocus = document.activeElement === (running ? byId("ask") : stopButton);
  byId("ask").hidden = running;
  stopButton.hidden = !running;
  if (moveFocus) (running ? stopButton : byId("ask")).focus();
  if (!running) return;
  warn("");
  look.hide();
  answer.start();
  byId("answer").scrollIntoView({ block: "nearest" });
}

function showGap({ message, demonstration, field }) {
  warn(message);
  if (demonstration !== null) list.focus(demonstration, field);
  else if (field === null) byId("question-file").focus();
  else (byId("question").querySelector(`[data-key=${field}]`) ?? byId(field)).focus();
}

function connectAsking() {
  byId("question").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!asking) ask();
  });
  byId("stop-asking").addEventListener("click", () => asking?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    byId("question").requestSubmit();
  });
}

// The start

async function start() {
  buildTasks();
  connectSettings();
  connectPictures();
  connectAsking();
  byId("undo").addEventListener("click", undo);
  byId("model-select").addEventListener("change", ({ target }) => {
    clearAnswer();
    useModel(models.find(({ id }) => id === target.value));
  });
  byId("candidates").addEventListener("input", ({ target }) => {
    state.candidates = target.value.split(",").map((label) => label.trim()).filter(Boolean);
    changed();
  });
  const saved = restore();
  touched = saved !== null;
  state = saved ?? state;
  clearAnswer();
  showAll();
  await Promise.all([firstExample(), firstModel()]);
}

async function firstExample() {
  try {
    const [first] = await buildExamples();
    if (touched) return;
    const example = await stateOf(first);
    if (touched) return;
    state = example;
    showAll();
  } catch {
    warn("The examples could not be loaded; the page works with your own pictures.");
  }
}

async function firstModel() {
  try {
    await findModels();
  } catch (error) {
    byId("model-name").textContent = "No model yet";
    warn(sentence(error));
  }
}

start();
