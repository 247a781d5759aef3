// What the page holds, kept over a reload.

// The number belongs to the form of the state: a page that was reloaded after an update must not take up another form.
const KEY = "flamingo-playground-1";
const PAUSE = 300;

export const DEFAULT_SETTINGS = { max_tokens: 20, temperature: 0, top_p: 1, seed: null, stop: [] };

export function emptyState() {
  return {
    task: "free",
    demonstrations: [],
    question: { picture: null, values: { text: "Output:" } },
    candidates: [],
    settings: { ...DEFAULT_SETTINGS },
  };
}

/** What was saved, or null. */
export function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}

let timer;

/** Saves a moment later, so that typing does not write all pictures at every key. */
export function save(state) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(state));
    } catch {
      // Too many pictures for the store, or no store: an old state would be worse than none.
      forget();
    }
  }, PAUSE);
}

function forget() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // There is no store.
  }
}
