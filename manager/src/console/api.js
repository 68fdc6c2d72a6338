// What is asked of the manager, and the bearer token that it is asked with.

// The API is where this page's folder is.
const API = new URL("../", import.meta.url);
const TOKEN = "tss-token";

// How long the manager may take to answer, in milliseconds.
const PATIENCE = 10_000;

// How long a stream may be silent. Then it is opened again, which costs little: one event comes at once.
const SILENCE = 60_000;

// The longest event, in characters. The manager's have some hundreds.
const MAX_EVENT = 65_536;

// In the session's storage and nowhere else: it ends with the tab.
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

// The manager answered, and not with what was asked for.
export class Refusal extends Error {
  constructor(status, title, retryAfter) {
    super(title);
    this.status = status;
    // In seconds; 0 where it does not say.
    this.retryAfter = retryAfter;
  }
}

// The JSON at a path. Fails with a Refusal, or with whatever the network failed with.
export async function ask(path, signal) {
  const limits = [AbortSignal.timeout(PATIENCE)];
  if (signal) limits.push(signal);
  return (await open(path, "application/json", AbortSignal.any(limits))).json();
}

// The server-sent events at a path, until the manager ends the stream. A browser's own EventSource cannot send a token.
export async function* follow(path, signal) {
  const silence = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new Error("the stream is silent")), SILENCE);
  };
  heard();
  try {
    const response = await open(path, "text/event-stream", AbortSignal.any([signal, silence.signal]));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const events = (text + value).split(/\r\n\r\n|\n\n|\r\r/);
      text = events.pop();
      if (text.length > MAX_EVENT) throw new Error("an event is too long");
      for (const event of events) {
        const data = event.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
        if (data.length > 0) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

async function open(path, accept, signal) {
  const headers = { accept };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  const response = await fetch(new URL(path, API), { headers, signal, cache: "no-store", credentials: "omit" });
  if (response.ok) return response;
  // A proxy in between may answer something else than a problem.
  const problem = await response.json().catch(() => ({}));
  const title = problem.detail ?? problem.title ?? response.statusText;
  throw new Refusal(response.status, title, Number(response.headers.get("retry-after")) || 0);
}
