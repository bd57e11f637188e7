// The question, and its answer, which is asked for again whenever the classes change.

import { fill } from "./cards.js";
import { attempt, change, changes, form, json, path, state, take, watch } from "./draft.js";
import { at, droppable, el, flat, percent, picker, say, time } from "./elements.js";
import { picture } from "./pictures.js";

const BARS = 6;
const BUTTONS = 12;
const LISTED = 5;

let asked = {};

function question(files) {
  if (!files.length) {
    say(at("ask-message"), "Only an image file can be dropped here.");
    return;
  }
  if (asked.url) URL.revokeObjectURL(asked.url);
  const [file] = files;
  const url = URL.createObjectURL(file);
  asked = { file, url };
  Object.assign(at("asked"), { src: url, alt: file.name, hidden: false });
  const others = files.length > 1 ? ` (one at a time: the first of ${files.length})` : "";
  at("asked-name").textContent = file.name + others;
  say(at("correct-message"));
  hideAnswer();
  ask();
}

function hideAnswer() {
  at("answer").hidden = true;
  at("headline").textContent = "";
}

function ask() {
  const { file } = asked;
  attempt(at("ask-message"), async () => {
    if (file !== asked.file) return;
    asked.changes = changes;
    try {
      if (state.ready) {
        showAnswer(await json("POST", path("/predict"), form("images", [file])));
      } else {
        say(at("ask-message"), "It is answered as soon as two classes have names.", true);
        hideAnswer();
      }
    } catch (error) {
      hideAnswer();
      if (error.status === 422) asked.file = null; // no image: no use in asking again
      throw error;
    }
  });
}

function showAnswer({ predictions, unknown, set, coverage, support, milliseconds, ...why }) {
  const top = predictions.slice(0, BARS);
  const best = `${top[0].class} (${percent(top[0].probability)})`;
  at("headline").textContent = unknown ? `Unknown: the nearest is ${best}` : best;
  at("headline").classList.toggle("unsure", unknown === true);
  const known = unknown === false ? "Not unknown. " : "";
  const verdict = unknown ? "Like none of these classes. " : known;
  at("facts").textContent = `${verdict}${likely(set, coverage)}Answered in ${time(milliseconds)}.`;
  showBars(top);
  at("decided").textContent = decided(why);
  at("support-title").textContent = support.length ? `Images that spoke for ${top[0].class}` : noImage(why);
  at("support").replaceChildren(...support.map(supportImage));
  showCorrections(top.map((each) => each.class));
  at("answer").hidden = false;
}

function likely(set, coverage) {
  if (!set) return "";
  if (!set.length) return "None of these is likely. ";
  const more = set.length > LISTED ? ` and ${set.length - LISTED} more` : "";
  const words = set.slice(0, LISTED).join(", ") + more;
  return `At ${percent(coverage)} ${set.length > 1 ? "one of" : "only"}: ${words}. `;
}

// What the lead over the second class is made of.
function decided({ rival, names, images }) {
  if (!rival || names === null || images === null) return "";
  const [ofNames, ofImages] = [names, images].map((share) => percent(Math.abs(share)));
  let what = `names ${ofNames}, images ${ofImages}`;
  if (names < 0) what = `by the images (${ofImages}), against the names (${ofNames})`;
  if (images < 0) what = `by the names (${ofNames}), against the images (${ofImages})`;
  return `Rather than ${rival}: ${what}.`;
}

function noImage({ rival, images }) {
  if (images > 0) return `Images decided only by being unlike ${rival}`;
  const some = state.classes.some((each) => each.images.length);
  return some ? "No image spoke for it: the names did" : "The names alone decided: there is no image yet";
}

function showBars(top) {
  const bars = at("bars").children;
  const shown = [...bars].map((bar) => bar.title).join("\n");
  if (shown !== top.map((each) => each.class).join("\n")) at("bars").replaceChildren(...top.map(gauge));
  for (const [row, { probability }] of top.entries()) {
    bars[row].children[1].firstChild.style.width = `${100 * probability}%`;
    bars[row].lastChild.textContent = percent(probability);
  }
}

function gauge({ class: title }) {
  const bar = el("span", { className: "bar" }, el("i"));
  return el("li", { title }, el("span", {}, title), bar, el("span"));
}

function supportImage(image) {
  const thumb = el("span", { className: "thumb" }, picture(image));
  return el("li", { title: image.name }, thumb, image.class, el("br"), percent(image.share));
}

function showCorrections(nearest) {
  const names = state.classes.map((each) => each.name);
  const shown = names.length > BUTTONS ? nearest : names;
  const place = at("correct");
  if (place.names !== shown.join("\n")) {
    place.names = shown.join("\n");
    place.replaceChildren(...shown.map((name) => el("button", { onclick: () => correct(name) }, name)));
    if (shown !== names) place.append(otherClasses(names));
  }
  const holds = (each) => each.images.some((image) => image.id === asked.id);
  const here = state.classes.find(holds)?.name;
  for (const button of place.querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(button.textContent === here));
}

function otherClasses(names) {
  const options = names.map((name) => el("option", {}, name));
  const onchange = ({ target }) => correct(target.value);
  const first = el("option", { value: "" }, "another class…");
  return el("select", { "aria-label": "Another class", onchange }, first, ...options);
}

// Put the image that was asked about into a class.
function correct(name) {
  const { file } = asked;
  attempt(at("correct-message"), async () => {
    if (!name || file !== asked.file) return;
    const ids = (classes) => classes.flatMap((each) => each.images.map((image) => image.id));
    const before = new Set(ids(state.classes));
    const next = before.has(asked.id)
      ? await change("PATCH", `/images/${asked.id}`, { name })
      : await change("POST", `/images?name=${encodeURIComponent(name)}`, form("images", [file]));
    asked.id = ids(next.classes).find((id) => !before.has(id)) ?? asked.id;
    take(next);
    if (next.refused?.length) say(at("correct-message"), next.refused.map((each) => each.error).join("\n"));
    else say(at("correct-message"), `It is now one of the images of ${name}.`, true);
  });
}

at("fresh").onsubmit = (event) => {
  event.preventDefault();
  const input = event.target.querySelector("input");
  const name = input.value.trim();
  if (!name) {
    input.focus();
    return;
  }
  input.value = "";
  fill(name);
  correct(name);
};

at("pick").append(
  picker("Choose an image", question, { className: "main", "aria-label": "Choose an image to ask about" }),
  picker("Take a photo", question, {
    className: "photo",
    capture: "environment",
    "aria-label": "Take a photo to ask about",
  }),
);
droppable(at("drop"), (groups) => question(flat(groups)));
addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) question([...clipboardData.files]);
});
at("jump").onclick = () => {
  at("ask").scrollIntoView();
  at("ask-title").focus({ preventScroll: true });
};
new IntersectionObserver(([seen]) => {
  at("jump").hidden = seen.isIntersecting;
}).observe(at("ask"));

watch({
  show(isNew) {
    if (!isNew) return;
    asked.id = null;
    hideAnswer();
  },
  settle() {
    if (asked.file && asked.changes !== changes) ask();
  },
});
