// Where the text looked: the tokens of prompt and answer as buttons, and a heat map for the chosen one.

import { chip, percent } from "./answer.js";
import { element } from "./dom.js";
import { drawHeat, drawLegend, drawPicture, heatScale, regions } from "./heat.js";

// A ninth of an even look is 11 %: below this share no part of the picture stands out.
const STANDS_OUT = 0.15;

const KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

export class LookView {
  #root = document.getElementById("look");
  #tokens = document.getElementById("tokens");
  #looks = document.getElementById("looks");
  #legendTop = document.getElementById("legend-top");
  #legend = this.#root.querySelector(".legend");
  #attention;
  #pictures;
  #buttons = [];
  // Counts choices: of two maps that are being drawn, only the later one is shown.
  #choices = 0;

  constructor() {
    drawLegend(document.getElementById("legend"));
    this.#tokens.addEventListener("keydown", (event) => this.#walk(event));
  }

  hide() {
    this.#root.hidden = true;
  }

  fail(message) {
    this.#tokens.replaceChildren();
    this.#legend.hidden = true;
    this.#looks.replaceChildren(element("p", "hint", message));
    this.#root.hidden = false;
  }

  /** Shows an answer of /v1/attention for a prompt with these pictures. */
  async show(attention, pictures) {
    this.#attention = attention;
    this.#pictures = pictures;
    this.#buttons = [];
    this.#tokens.replaceChildren(...attention.tokens.map((token, at) => this.#token(token, at)));
    this.#legend.hidden = false;
    this.#root.hidden = false;
    await this.#choose(firstToShow(attention.tokens));
  }

  #token(token, at) {
    const picture = this.#pictures[token.image];
    if (picture) {
      const image = chip(picture);
      image.dataset.picture = token.image;
      return image;
    }
    const button = element("button", token.completion ? "token answered" : "token", visible(token.text));
    button.type = "button";
    button.ariaLabel = spoken(token.text);
    button.addEventListener("click", () => this.#choose(at));
    this.#buttons.push({ button, at });
    return button;
  }

  #walk(event) {
    const step = KEYS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const here = this.#buttons.findIndex(({ button }) => button === document.activeElement);
    const there = Math.min(this.#buttons.length - 1, Math.max(0, here + step));
    this.#buttons[there].button.focus();
    this.#choose(this.#buttons[there].at);
  }

  async #choose(chosen) {
    const choice = ++this.#choices;
    for (const { button, at } of this.#buttons) {
      button.ariaPressed = at === chosen;
      button.tabIndex = at === chosen ? 0 : -1;
    }
    const { text, looks } = this.#attention.tokens[chosen];
    for (const image of this.#tokens.querySelectorAll("[data-picture]")) {
      image.classList.toggle("looked", looks.some((look) => look.image === Number(image.dataset.picture)));
    }
    const name = `“${spoken(text)}”`;
    if (!looks.length) {
      this.#looks.replaceChildren(element("p", "hint", `${name} looked at no picture.`));
      this.#legend.hidden = true;
      return;
    }
    const scale = heatScale(looks.map((look) => look.map));
    const figures = await Promise.all(looks.map((look) => this.#figure(name, look, looks.length > 1, scale.top)));
    if (choice !== this.#choices) return;
    this.#legend.hidden = false;
    this.#legendTop.textContent = `${scale.times.toFixed(1)} × an even look`;
    this.#looks.replaceChildren(...figures);
  }

  async #figure(name, { image, map }, oneOfMany, top) {
    const { grid } = this.#attention;
    const { url } = this.#pictures[image];
    const [plain, heat] = [element("canvas"), element("canvas", "heat")];
    plain.ariaHidden = true;
    heat.ariaHidden = true;
    await Promise.all([drawPicture(plain, url), drawHeat(heat, url, map, grid, top)]);
    const figure = element("figure");
    const share = oneOfMany ? ` with ${percent(map.reduce((total, value) => total + value, 0))} of its look` : "";
    const where = `${name} looked at ${this.#pictureName(image)}${share}, ${inWords(map, grid)}.`;
    figure.append(plain, heat, element("figcaption", "", where));
    return figure;
  }

  #pictureName(image) {
    return image === this.#pictures.length - 1 ? "the question’s picture" : `picture ${image + 1}`;
  }
}

/** The first word of the answer, or else whatever looked at something. */
function firstToShow(tokens) {
  const isWord = ({ text }) => /[\p{L}\p{N}]/u.test(text);
  const tests = [
    (token) => token.completion && token.looks.length && isWord(token),
    (token) => token.completion && token.looks.length,
    (token) => token.looks.length,
    (token) => token.image === null,
  ];
  return tests.map((test) => tokens.findIndex(test)).find((at) => at >= 0);
}

function inWords(map, grid) {
  const [[first, share], [second, next]] = regions(map, grid);
  if (share < STANDS_OUT) return "about evenly everywhere";
  return `most at the ${first} (${percent(share)}), then at the ${second} (${percent(next)})`;
}

/** A token's text with its blanks visible. */
function visible(text) {
  return text.replaceAll("\n", "⏎").replace(/^ | $/g, "·") || "∅";
}

function spoken(text) {
  if (text.trim()) return text.trim();
  return text.includes("\n") ? "line break" : "space";
}
