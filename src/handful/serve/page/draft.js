// The server, and the draft that it holds for this page. What changes the draft runs one after the other.

import { at, say } from "./elements.js";

export const NOTHING = {
  id: null,
  method: "auto",
  methods: ["auto", "tip-adapter", "meta-adapter"],
  classes: [],
  ready: false,
  note: "",
};
const PORTION = { images: 16, bytes: 2e7 };

export let state = NOTHING;
export let changes = 0;
let token = "";

export function setToken(value) {
  token = value;
}

// --- Requests.

export async function api(method, path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let sent = body;
  if (body && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    sent = JSON.stringify(body);
  }
  const answer = await fetch(path, { method, headers, body: sent }).catch(() => {
    throw new Error("The server doesn't answer. Is it still running?");
  });
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({}));
  const reason = Array.isArray(detail) ? detail.map((each) => each.msg).join("; ") : detail;
  const words =
    answer.status === 401
      ? "The server wants its token: put #token=… behind the address of this page."
      : reason || `The server failed (${answer.status} ${answer.statusText}).`;
  throw Object.assign(new Error(words), { status: answer.status });
}

export const json = async (...request) => (await api(...request)).json();
export const path = (rest = "") => `drafts/${encodeURIComponent(state.id)}${rest}`;

// Change the draft, which is made with its first change.
export async function change(method, rest, body) {
  if (!state.id) take(await json("POST", "drafts", { method: state.method, model: null }));
  return json(method, path(rest), body);
}

// Files in parts that the server takes at once.
export function* portions(files) {
  let some = [];
  let size = 0;
  for (const file of files) {
    if (some.length === PORTION.images || (some.length && size + file.size > PORTION.bytes)) {
      yield some;
      some = [];
      size = 0;
    }
    some.push(file);
    size += file.size;
  }
  yield some;
}

export function form(field, files) {
  const data = new FormData();
  for (const file of files) data.append(field, file);
  return data;
}

// --- The draft's state. Its id stands in the address, so that a reload goes on and Back goes back.

// What shows the draft: `show(isNew)` after each change, `settle()` when no change is left to be made.
const watchers = [];
export const watch = (watcher) => watchers.push(watcher);

// Show another draft than before.
export const open = (next, how) => take(next, how, true);

export function take(next, how = "replaceState", isNew = false) {
  state = next;
  changes += 1;
  const facts = Object.entries({ token, draft: state.id }).filter(([, value]) => value);
  if (how) history[how](null, "", facts.length ? `#${new URLSearchParams(facts)}` : location.pathname);
  for (const watcher of watchers) watcher.show?.(isNew);
}

let last = Promise.resolve();
let running = 0;

// Do a job after those before it; `place` says what goes wrong.
export function attempt(place, job) {
  running += 1;
  at("busy").classList.add("on");
  last = last.then(async () => {
    say(place);
    try {
      await job();
    } catch (error) {
      if (error.status === 404 && state.id && (await isGone())) startAgain();
      else say(place, error.message);
    }
    running -= 1;
    at("busy").classList.toggle("on", running > 0);
    if (!running) for (const watcher of watchers) watcher.settle?.();
  });
  return last;
}

const isGone = () =>
  api("GET", path()).then(
    () => false,
    ({ status }) => status === 404,
  );

export function startAgain() {
  open(NOTHING);
  say(at("notice"), "The server no longer has this draft. Here is a new one.");
  at("notice").scrollIntoView({ block: "center" });
}
