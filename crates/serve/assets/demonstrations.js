// The list of demonstrations: editing, removing, and reordering by pointer or keyboard.

import { textField } from "./dom.js";
import { TASKS } from "./prompt.js";

// Dragging this close to the window's edge scrolls.
const EDGE = 56;

export class DemonstrationList {
  #list;
  #template;
  #announce;
  #onChange;
  #items = [];

  constructor(list, template, { announce, onChange }) {
    this.#list = list;
    this.#template = template;
    this.#announce = announce;
    this.#onChange = onChange;
  }

  /** Shows `demonstrations` (the state's own list, which edits change in place) with the fields of a task. */
  show(demonstrations, task, model) {
    this.#items = demonstrations;
    this.#list.replaceChildren(...demonstrations.map((demonstration) => this.#card(demonstration, task, model)));
    this.#renumber();
  }

  /** Puts the focus into a demonstration's field: its first one unless `key` names another. */
  focus(index, key) {
    const fields = this.#list.children[index]?.querySelectorAll("[data-key]") ?? [];
    ([...fields].find((field) => field.dataset.key === key) ?? fields[0])?.focus();
  }

  #card(demonstration, task, model) {
    const card = this.#template.content.firstElementChild.cloneNode(true);
    const picture = card.querySelector(".thumb");
    picture.src = demonstration.picture.url;
    picture.alt = demonstration.picture.name;
    const options = { of: "of demonstration", model, onInput: this.#onChange };
    card
      .querySelector(".fields")
      .append(...TASKS[task].fields.map((field) => textField(field, demonstration.values, options)));
    card.querySelector(".up").addEventListener("click", () => this.#move(card, -1));
    card.querySelector(".down").addEventListener("click", () => this.#move(card, 1));
    card.querySelector(".remove").addEventListener("click", () => this.#remove(card));
    card.querySelector(".grip").addEventListener("pointerdown", (event) => this.#drag(card, event));
    return card;
  }

  #position(card) {
    return [...this.#list.children].indexOf(card);
  }

  #move(card, step) {
    const from = this.#position(card);
    const to = from + step;
    if (to < 0 || to >= this.#items.length) {
      this.#announce(`Demonstration ${from + 1} is already the ${to < 0 ? "first" : "last"}.`);
      return;
    }
    swapWithNeighbour(card, step);
    this.#settle(card, from);
  }

  /** Takes the order of the cards over into the state's list. */
  #settle(card, from) {
    const to = this.#position(card);
    if (to === from) return;
    this.#items.splice(to, 0, ...this.#items.splice(from, 1));
    this.#renumber();
    this.#announce(`Moved to place ${to + 1} of ${this.#items.length}.`);
    this.#onChange();
  }

  #remove(card) {
    const at = this.#position(card);
    this.#items.splice(at, 1);
    card.remove();
    this.#renumber();
    const next = this.#list.children[Math.min(at, this.#items.length - 1)];
    (next?.querySelector(".remove") ?? document.getElementById("add-files")).focus();
    this.#announce(`Demonstration ${at + 1} removed, ${this.#items.length} left.`);
    this.#onChange();
  }

  #renumber() {
    const last = this.#items.length - 1;
    [...this.#list.children].forEach((card, at) => {
      const name = `demonstration ${at + 1}`;
      card.querySelector(".node").textContent = at + 1;
      for (const context of card.querySelectorAll("label span")) context.textContent = ` of ${name}`;
      const [up, down, remove] = card.querySelectorAll("button");
      up.ariaLabel = `Move ${name} up`;
      down.ariaLabel = `Move ${name} down`;
      remove.ariaLabel = `Remove ${name}`;
      // Not `disabled`: that would drop the focus of whoever moves a card up to the top.
      up.ariaDisabled = at === 0;
      down.ariaDisabled = at === last;
    });
  }

  #drag(card, down) {
    if (down.button !== 0) return;
    down.preventDefault();
    const from = this.#position(card);
    const hold = down.clientY - card.getBoundingClientRect().top;
    let shift = 0;
    const follow = (event) => {
      scrollAtEdge(event.clientY);
      const top = () => card.getBoundingClientRect().top - shift;
      const wanted = event.clientY - hold;
      const step = stepTowards(card, wanted);
      if (step) swapWithNeighbour(card, step);
      shift = wanted - top();
      card.style.transform = `translateY(${shift}px)`;
    };
    const drop = () => {
      listening.abort();
      card.classList.remove("dragged");
      card.style.transform = "";
      this.#settle(card, from);
    };
    const listening = new AbortController();
    const options = { signal: listening.signal };
    card.classList.add("dragged");
    window.addEventListener("pointermove", follow, options);
    window.addEventListener("pointerup", drop, options);
    window.addEventListener("pointercancel", drop, options);
  }
}

/** Moves the neighbour, never the card: a card that is taken out of the document loses its pointer and its focus. */
function swapWithNeighbour(card, step) {
  if (step < 0) card.after(card.previousElementSibling);
  else card.before(card.nextElementSibling);
}

/** -1 or 1 if a card whose top is at `top` has passed the middle of its neighbour, else 0. */
function stepTowards(card, top) {
  const middle = (other) => other.getBoundingClientRect().top + other.offsetHeight / 2;
  const { previousElementSibling: previous, nextElementSibling: next } = card;
  if (previous && top < middle(previous)) return -1;
  if (next && top + card.offsetHeight > middle(next)) return 1;
  return 0;
}

function scrollAtEdge(y) {
  if (y < EDGE) window.scrollBy(0, -EDGE / 4);
  else if (y > window.innerHeight - EDGE) window.scrollBy(0, EDGE / 4);
}
