// Two ways to the model behind one interface: a server (HTTP), or a worker that runs the model in this browser. Requests and
// answers have the same JSON shapes in both.
//
//   models(signal)              the answer of GET /v1/models
//   complete(request, signal)   yields {text} for each piece, at last {done: true, finish_reason, flamingo, usage}
//   score(request, signal)      the answer of POST /v1/score
//   attention(request, signal)  the answer of POST /v1/attention
//
// What goes wrong is thrown as a ModelError whose message can be shown, or as an AbortError if `signal` asked for it.

export class ModelError extends Error {}

const LOST = "The connection to the server broke. What you wrote is still here: ask again when the server is back.";

export class HttpClient {
  async models(signal) {
    return (await send("v1/models", undefined, signal)).json();
  }

  async *complete(request, signal) {
    const response = await send("v1/completions", request, signal);
    const end = { done: true, finish_reason: null, flamingo: null, usage: null };
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") {
        yield end;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ModelError(chunk.error.message);
      const text = noteChunk(end, chunk);
      if (text) yield { text };
    }
    throw new ModelError(LOST);
  }

  async score(request, signal) {
    return (await send("v1/score", request, signal)).json();
  }

  async attention(request, signal) {
    return (await send("v1/attention", request, signal)).json();
  }
}

/**
 * Talks to `worker.js` beside the page: posts `{id, method, request}`, and `{id, method: "cancel"}` to stop. The worker posts
 * `{id, event: "piece", data}` with a chunk as a server streams it, `{id, event: "result", data}` with the whole answer (as if
 * it had not been streamed), `{id, event: "error", message}`, and `{event: "progress", loaded, total}` while weights load.
 */
export class WorkerClient {
  #worker = new Worker("worker.js", { type: "module" });
  #calls = new Map();
  #lastId = 0;
  /** Why no request can be answered any more. */
  #failure = null;

  /** `onProgress(loaded, total)` is told how much of the weights is there. */
  constructor(onProgress) {
    this.#worker.onmessage = ({ data: message }) => {
      if (message.event === "progress") onProgress(message.loaded, message.total);
      else this.#calls.get(message.id)?.(message);
    };
    this.#worker.onerror = () => {
      this.#failure = "The model could not be started in this browser: reload the page.";
      for (const tell of this.#calls.values()) tell({ event: "error", message: this.#failure });
    };
  }

  models(signal) {
    return this.#answer("models", {}, signal);
  }

  async *complete(request, signal) {
    const end = { done: true, finish_reason: null, flamingo: null, usage: null };
    for await (const { event, data } of this.#call("complete", request, signal)) {
      const text = noteChunk(end, data);
      if (event === "piece" && text) yield { text };
    }
    yield end;
  }

  score(request, signal) {
    return this.#answer("score", request, signal);
  }

  attention(request, signal) {
    return this.#answer("attention", request, signal);
  }

  async #answer(method, request, signal) {
    for await (const { event, data } of this.#call(method, request, signal)) {
      if (event === "result") return data;
    }
    throw new ModelError("The model gave no answer.");
  }

  /** Yields the worker's messages about one request up to its result. */
  async *#call(method, request, signal) {
    signal?.throwIfAborted();
    if (this.#failure) throw new ModelError(this.#failure);
    const id = ++this.#lastId;
    const waiting = [];
    let wake = () => {};
    const tell = (message) => {
      waiting.push(message);
      wake();
    };
    const abort = () => {
      this.#worker.postMessage({ id, method: "cancel" });
      tell({ event: "abort" });
    };
    this.#calls.set(id, tell);
    signal?.addEventListener("abort", abort);
    try {
      this.#worker.postMessage({ id, method, request });
      while (true) {
        while (!waiting.length) await new Promise((resolve) => (wake = resolve));
        const message = waiting.shift();
        if (message.event === "abort") throw signal.reason;
        if (message.event === "error") throw new ModelError(message.message);
        yield message;
        if (message.event === "result") return;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#calls.delete(id);
    }
  }
}

/** Keeps what a chunk says about the whole answer in `end`, and returns its piece of text. */
function noteChunk(end, chunk) {
  const choice = chunk.choices?.[0];
  end.finish_reason = choice?.finish_reason ?? end.finish_reason;
  end.flamingo = chunk.flamingo ?? end.flamingo;
  end.usage = chunk.usage ?? end.usage;
  return choice?.text ?? "";
}

async function send(path, request, signal) {
  const options = request && {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
  };
  let response;
  try {
    response = await fetch(path, { ...options, signal });
  } catch (error) {
    throw asModelError(error);
  }
  if (!response.ok) throw new ModelError(await refusal(response));
  return response;
}

function asModelError(error) {
  return error.name === "AbortError" ? error : new ModelError(LOST);
}

async function refusal(response) {
  if (response.status === 429) {
    const seconds = Number(response.headers.get("retry-after"));
    return `The server is busy with other requests: ask again ${seconds > 0 ? `in ${seconds} s` : "in a moment"}.`;
  }
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status} and no explanation.`;
}

/** Yields the data of each server-sent event. */
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    while (true) {
      const { value, done } = await reader.read().catch((error) => {
        throw asModelError(error);
      });
      if (done) return;
      // A network chunk ends anywhere: only what a blank line has closed is an event.
      const events = (buffer + value).replaceAll("\r\n", "\n").split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    // Whoever stops reading wants no more of it; a stream that has failed cannot be cancelled, and need not be.
    await reader.cancel().catch(() => {});
  }
}
