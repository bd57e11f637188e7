// The page: its head, with the method, open, download and start anew; classes and question are its imports.

import { focusFirst, hasCards } from "./cards.js";
import {
  api,
  attempt,
  change,
  form,
  json,
  NOTHING,
  open,
  path,
  setToken,
  startAgain,
  state,
  take,
  watch,
} from "./draft.js";
import { at, count, el, say, time } from "./elements.js";
import "./question.js";

const METHODS = {
  auto: ["Auto", "Weighs class names and images by how well each does on images held out."],
  "tip-adapter": ["Tip-Adapter", "Weighs every image you gave, beside the class names."],
  "meta-adapter": ["Meta-Adapter", "Lets a class's images refine its name, by a network trained beforehand."],
};
let models = [];

// --- What the draft has learned, and by which method.

watch({
  show() {
    const classes = state.classes.length;
    const images = state.classes.reduce((sum, each) => sum + each.images.length, 0);
    at("intro").hidden = images > 0;
    for (const id of ["download", "anew", "back"]) at(id).hidden = !classes;
    at("about").textContent = METHODS[state.method]?.[1] ?? "";
    const learned = `${count(images, "image")} in ${count(classes, "class", "classes")}, learned in `;
    const note = state.note ? ` ${state.note}` : "";
    at("learned").textContent = classes ? `${learned}${time(state.milliseconds)}.${note}` : "";
    showMethods();
  },
});

function showMethods() {
  const place = at("methods");
  if (place.children.length !== state.methods.length)
    place.replaceChildren(...state.methods.map(methodChoice));
  for (const input of place.querySelectorAll("input")) input.checked = input.value === state.method;
}

function methodChoice(value) {
  const input = el("input", { type: "radio", name: "method", value, onchange: () => choose(value) });
  return el("label", {}, METHODS[value]?.[0] ?? value, input);
}

async function choose(method) {
  await attempt(at("notice"), async () => {
    take(state.id ? await change("PATCH", "", { method }) : { ...state, method });
  });
  showMethods(); // as it was, if the server refused
}

// --- Open, download, start anew.

const reopen = (...request) =>
  attempt(at("open-message"), async () => {
    open(await json("POST", ...request), "pushState");
    say(at("notice"));
    at("open").hidePopover();
  });

at("saved").onsubmit = (event) => {
  event.preventDefault();
  const { name: model, method } = models[at("model").selectedIndex];
  reopen("drafts", { method, model });
};

at("zip").onchange = () => {
  const files = [...at("zip").files];
  at("zip").value = "";
  if (files.length) reopen("drafts/open", form("file", files));
};

at("download").onclick = () =>
  attempt(at("notice"), async () => {
    if (!state.ready) throw new Error("Two named classes make a classifier.");
    const answer = await api("GET", path("/download"));
    const named = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition"));
    const href = URL.createObjectURL(await answer.blob());
    el("a", { href, download: named?.[1] ?? "handful.zip" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  });

at("anew").onclick = () =>
  attempt(at("notice"), async () => {
    open(NOTHING, "pushState");
    say(at("notice"), "What you had is one step back in the browser.", true);
    focusFirst();
  });

// --- The address says which draft this is.

async function start() {
  const hash = new URLSearchParams(location.hash.slice(1));
  setToken(hash.get("token") ?? "");
  await attempt(at("notice"), async () => {
    const next = await find(hash.get("draft"));
    if (!next) startAgain();
    else if (next !== state || !hasCards()) open(next);
    await showServer();
  });
  if (!hasCards()) open(NOTHING, null);
}

// Give the state of the draft of an id; nothing, if the server has no such draft.
async function find(id) {
  if (!id) return NOTHING;
  if (id === state.id) return state;
  return json("GET", `drafts/${encodeURIComponent(id)}`).catch((error) => {
    if (error.status !== 404) throw error;
  });
}

async function showServer() {
  const answer = await json("GET", "models");
  models = answer.models.filter((model) => model.online);
  NOTHING.methods = answer.methods ?? NOTHING.methods;
  showMethods();
  const { name, image_size: side } = answer.backbone;
  const demonstration = name === "mini" ? " (a demonstration model)" : "";
  at("backbone").textContent = `Backbone: ${name}${demonstration}, images of ${side} px`;
  at("saved").hidden = !models.length;
  at("model").replaceChildren(...models.map((model) => el("option", {}, describe(model))));
}

const describe = ({ name, method, classes }) =>
  `${name} (${method}, ${count(classes.length, "class", "classes")})`;

addEventListener("popstate", start);
start();
