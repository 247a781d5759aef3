// The prompt as it is sent, and the answer: text as it comes or bars of labels, with how long it took.

import { element } from "./dom.js";

const MARK = /(<\|endofchunk\|>)/;

/** Shows a prompt with small pictures where `<image>` stands. */
export function showPrompt(target, pieces) {
  const turns = [];
  for (const { picture, text } of pieces) {
    // A picture and the text after it stay together when the line breaks.
    if (picture || !turns.length) turns.push(element("span", "turn"));
    turns.at(-1).append(...(picture ? [chip(picture)] : marked(text)));
  }
  target.replaceChildren(...turns);
}

/** A small picture in place of `<image>`. */
export function chip(picture) {
  const image = element("img", "chip");
  image.src = picture.url;
  image.alt = "<image>";
  image.title = `<image>: ${picture.name}`;
  return image;
}

function marked(text) {
  return text
    .split(MARK)
    .filter(Boolean)
    .map((part) => element("span", MARK.test(part) ? "mark" : "", part));
}

export class AnswerView {
  #root = document.getElementById("answer");
  #completion = document.getElementById("completion");
  #bars = document.getElementById("bars");
  #ending = document.getElementById("ending");
  #timings = document.getElementById("timings");

  start() {
    this.#completion.replaceChildren();
    this.#bars.hidden = true;
    this.#ending.textContent = "";
    this.#timings.replaceChildren();
    // Not read out piece by piece; the whole answer is announced at its end.
    this.#root.ariaBusy = true;
    this.#root.classList.add("running");
  }

  piece(text) {
    // Most answers begin with a space, which parts them from the prompt but would only indent them here.
    const shown = this.#completion.hasChildNodes() ? text : text.trimStart();
    if (shown) this.#completion.append(element("span", "piece", shown));
  }

  end(note = "") {
    this.#root.ariaBusy = false;
    this.#root.classList.remove("running");
    this.#ending.textContent = note;
  }

  /** A table of candidates, the likeliest first; `onChoose(candidate)` when one is chosen to look at. */
  showBars(scores, onChoose) {
    const rows = scores
      .toSorted((a, b) => b.probability - a.probability)
      .map((score) => barRow(score, (button) => {
        for (const other of this.#bars.querySelectorAll("button")) other.ariaPressed = other === button;
        onChoose(score.candidate);
      }));
    rows[0]?.querySelector("button").setAttribute("aria-pressed", "true");
    this.#bars.tBodies[0].replaceChildren(...rows);
    this.#bars.hidden = false;
  }

  /** What `flamingo` and `usage` of an answer tell, and the milliseconds from the click to the end. */
  showTimings(flamingo, usage, wallMs) {
    const { timings, images, tokens } = flamingo ?? {};
    const written = usage?.completion_tokens;
    const entries = [["Total", milliseconds(wallMs)]];
    if (timings) {
      entries.push(
        ["Waiting", milliseconds(timings.queue_ms)],
        ["Pictures", milliseconds(timings.images_ms) + known(images?.cached, images?.seen)],
        ["Prompt", milliseconds(timings.prefill_ms) + known(tokens?.cached, tokens?.prompt, "tokens")],
        ["Answer", milliseconds(timings.decode_ms) + rate(written, timings.decode_ms)],
      );
    }
    this.#timings.replaceChildren(...entries.map(timing));
  }
}

function barRow({ candidate, probability, log_prob }, onPress) {
  const button = element("button", "candidate", candidate.trim() || "blank");
  button.type = "button";
  button.ariaPressed = false;
  button.addEventListener("click", () => onPress(button));
  const name = element("th");
  name.scope = "row";
  name.append(button);
  const bar = element("span", "bar");
  bar.style.setProperty("--share", probability);
  const share = element("td", "share");
  share.append(bar, element("span", "number", percent(probability)));
  const row = element("tr");
  row.append(name, share, element("td", "number", log_prob.toFixed(2).replace("-", "−")));
  return row;
}

function timing([name, value]) {
  const entry = element("div");
  entry.append(element("dt", "", name), element("dd", "", value));
  return entry;
}

function known(cached, all, what = "") {
  return cached === undefined || all === undefined ? "" : ` (${cached} of ${[all, what].join(" ").trim()} known)`;
}

function rate(written, ms) {
  if (!written) return "";
  const perSecond = ms > 0 ? `, ${Math.round((1000 * written) / ms)} a second` : "";
  return ` (${written} token${written === 1 ? "" : "s"}${perSecond})`;
}

function milliseconds(value = 0) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 10 ? Math.round(value) : value.toFixed(1)} ms`;
}

export function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}\u202f%`;
}
