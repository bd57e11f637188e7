// Building and finding elements. What comes from the server or from file names goes in as text nodes only.

export const at = (id) => document.getElementById(id);
export const percent = (share) => (share > 0 && share < 0.005 ? "<1 %" : `${Math.round(share * 100)} %`);
export const count = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;
export const time = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

export function el(tag, facts = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(facts)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...inside);
  return node;
}

export function say(place, words = "", plain = false) {
  place.classList.toggle("plain", plain);
  place.textContent = words;
}

// A button that chooses image files and gives them to `take`.
export function picker(text, take, { className = "", ...facts } = {}) {
  const onchange = () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    if (files.length) take(files);
  };
  const input = el("input", { type: "file", accept: "image/*", ...facts, onchange });
  return el(
    "label",
    { className: `button ${className}` },
    el("span", { "aria-hidden": "true" }, text),
    input,
  );
}

// Lets files be dropped on a node. `take` gets them by the name of their folder, "" for those in none, and
// what was dragged from this page as data of the type that `draggedType` gives.
export function droppable(node, take, draggedType = () => "text/plain") {
  let depth = 0;
  const light = (by) => {
    depth += by;
    node.classList.toggle("over", depth > 0);
  };
  node.ondragenter = () => light(1);
  node.ondragleave = () => light(-1);
  node.ondrop = async ({ dataTransfer }) => {
    light(-depth);
    const dragged = dataTransfer.getData(draggedType());
    const groups = new Map();
    const put = (folder, file) => groups.set(folder, [...(groups.get(folder) ?? []), file]);
    const entries = [...dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    if (!entries.length) for (const file of dataTransfer.files) put("", file);
    for (const entry of entries) await walk(entry, "", put);
    take(groups, dragged);
  };
}

async function walk(entry, folder, put) {
  if (entry.name.startsWith(".")) return;
  if (entry.isFile) {
    put(folder, await new Promise((good, bad) => entry.file(good, bad)));
    return;
  }
  const reader = entry.createReader();
  const some = () => new Promise((good, bad) => reader.readEntries(good, bad)); // a hundred at a time
  for (let found = await some(); found.length; found = await some()) {
    for (const each of found) await walk(each, entry.name, put);
  }
}

export const flat = (groups) => [...groups.values()].flat();

for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
