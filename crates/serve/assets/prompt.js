// What a prompt is made of. Pure functions: nothing here touches the page.

const END_OF_DEMONSTRATION = "<|endofchunk|>";
const PICTURE_MARK = "<image>";
const LABEL_PROMPT = "Output:";

const vqa = (question, answer) => `Question:${question} Short answer:${answer}`;

/** A caption goes on after a space if its prompt ends in a word ("A picture of"), and at once after "Output:". */
function continued(prompt, text) {
  return /[\p{L}\p{N}]$/u.test(prompt) ? `${prompt} ${text}` : prompt + text;
}

/**
 * The tasks. `fields` are what a demonstration's card asks for, `questionFields` what the question's does; `demonstration`
 * and `question` turn their values into the text that follows the picture. `example` shows the form in empty fields.
 */
export const TASKS = {
  caption: {
    name: "Caption",
    about: "Each demonstration is a picture with its whole caption; the model writes the caption of the last picture.",
    fields: [{ key: "caption", label: "Caption", example: (model) => continued(captionPrompt(model), "a cat"), long: true }],
    questionFields: [{ key: "caption", label: "Text before the answer", example: captionPrompt, long: true }],
    demonstration: (values) => values.caption,
    question: (values) => values.caption,
  },
  vqa: {
    name: "VQA",
    about: "Each demonstration is a question about its picture with a short answer; the model answers the last one.",
    fields: [
      { key: "question", label: "Question", example: () => "what color is the shape?" },
      { key: "answer", label: "Answer", example: () => "blue" },
    ],
    questionFields: [{ key: "question", label: "Question", example: () => "what shape is present?" }],
    demonstration: (values) => vqa(values.question, values.answer),
    question: (values) => vqa(values.question, ""),
  },
  classify: {
    name: "Classify",
    about: "Each demonstration is a picture with its label; the model says how likely each label is for the last picture.",
    fields: [{ key: "label", label: "Label", example: () => "red" }],
    questionFields: [],
    demonstration: (values) => LABEL_PROMPT + values.label,
    question: () => LABEL_PROMPT,
    scored: true,
  },
  free: {
    name: "Free",
    about: "Each text stands after its picture exactly as written. “Output:” is enough to show a task by its results.",
    fields: [{ key: "text", label: "Text", example: () => "Output:nature", long: true }],
    questionFields: [{ key: "text", label: "Text before the answer", example: () => "Output:", long: true }],
    demonstration: (values) => values.text,
    question: (values) => values.text,
  },
};

export function captionPrompt(model) {
  return model?.flamingo?.caption_prompt ?? LABEL_PROMPT;
}

/** What a demonstration says in one task, bare of its prompt, so that another task can take it over. */
function bareAnswer(task, values, model) {
  const strip = (text, prompt) => (text.startsWith(prompt) ? text.slice(prompt.length).trim() : text);
  switch (task) {
    case "vqa":
      return values.answer ?? "";
    case "classify":
      return values.label ?? "";
    case "caption":
      return strip(values.caption ?? "", captionPrompt(model));
    default:
      return strip(values.text ?? "", LABEL_PROMPT);
  }
}

/** Fills what `to` asks for and nobody has written yet from what was written for `from`. */
export function carryOver(from, to, values, model) {
  const bare = bareAnswer(from, values, model);
  if (!bare) return values;
  const offered = {
    free: { text: LABEL_PROMPT + bare },
    caption: { caption: continued(captionPrompt(model), bare) },
    vqa: { answer: bare },
    classify: { label: bare },
  }[to];
  return { ...offered, ...Object.fromEntries(Object.entries(values).filter(([, text]) => text)) };
}

/** The values of the question's fields; the caption's text is the model's own until somebody writes another. */
export function questionValues(state, model) {
  return { text: "", question: "", ...state.question.values, caption: state.question.values.caption ?? captionPrompt(model) };
}

/**
 * The prompt as a list of `{picture}` and `{text}` in order; the question's picture is missing if there is none yet.
 */
export function assemble(state, model) {
  const task = TASKS[state.task];
  const pieces = [];
  for (const { picture, values } of state.demonstrations) {
    const text = task.demonstration(withBlanks(task.fields, values));
    pieces.push({ picture }, { text: text + END_OF_DEMONSTRATION });
  }
  if (state.question.picture) pieces.push({ picture: state.question.picture });
  pieces.push({ text: task.question(questionValues(state, model)) });
  return pieces;
}

function withBlanks(fields, values) {
  return Object.fromEntries(fields.map(({ key }) => [key, values[key] ?? ""]));
}

/** The pieces as the server takes them. */
export function requestParts(pieces) {
  return pieces
    .filter((piece) => piece.picture || piece.text)
    .map(({ picture, text }) =>
      picture ? { type: "image_url", image_url: { url: picture.url } } : { type: "text", text },
    );
}

/** The distinct labels of the demonstrations, then the others, each once. */
export function candidates(state) {
  const labels = state.demonstrations.map(({ values }) => values.label ?? "");
  return [...new Set([...labels, ...state.candidates].map((label) => label.trim()))].filter(Boolean);
}

/**
 * The first thing that keeps the prompt from being asked, as `{message, demonstration, field}` that say where to put it right
 * (`demonstration` is null for the question), or null.
 */
export function firstGap(state, model) {
  const task = TASKS[state.task];
  for (const [demonstration, { values }] of state.demonstrations.entries()) {
    for (const { key, label } of task.fields) {
      const problem = problemOf(values[key] ?? "", label.toLowerCase());
      if (problem) return { message: `Demonstration ${demonstration + 1}: ${problem}`, demonstration, field: key };
    }
  }
  if (!state.question.picture) {
    return { message: "The question has no picture yet: add one first.", demonstration: null, field: null };
  }
  const asked = questionValues(state, model);
  for (const { key, label } of task.questionFields) {
    // No text before the answer is a prompt, too: the model then goes on right after the picture.
    const problem = problemOf(asked[key], label.toLowerCase(), key !== "question");
    if (problem) return { message: `The question: ${problem}`, demonstration: null, field: key };
  }
  if (task.scored && candidates(state).length < 2) {
    return { message: "To classify, at least two different labels are needed.", demonstration: null, field: "candidates" };
  }
  return null;
}

function problemOf(text, label, mayBeBlank = false) {
  if (!mayBeBlank && !text.trim()) return `its ${label} is blank.`;
  if (text.includes(PICTURE_MARK)) return `its ${label} has ${PICTURE_MARK} in it, which only a picture may stand for.`;
  return null;
}
