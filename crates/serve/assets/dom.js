// Small makers of elements.

let lastId = 0;

/** An element with a class and a text. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/**
 * A labelled field of a task for `values[key]`; `onInput` is called after each change. `of` is added to the label for those who
 * do not see where the field stands.
 */
export function textField({ key, label, example, long }, values, { of, model, onInput }) {
  const field = element("div", "field");
  const input = element(long ? "textarea" : "input");
  input.id = `field-${++lastId}`;
  input.dataset.key = key;
  input.value = values[key] ?? "";
  input.placeholder = example(model);
  input.autocomplete = "off";
  input.spellcheck = false;
  if (long) input.rows = 1;
  input.addEventListener("input", () => {
    values[key] = input.value;
    onInput();
  });
  const name = element("label");
  name.htmlFor = input.id;
  name.append(label, element("span", "visually-hidden", ` ${of}`));
  field.append(name, input);
  return field;
}
