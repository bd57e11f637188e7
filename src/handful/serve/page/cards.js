// A class: its name, its images, and what can be done with them. Without a name it is on this page alone.

import { attempt, change, form, portions, state, take, watch } from "./draft.js";
import { at, count, droppable, el, flat, picker, say } from "./elements.js";
import { picture } from "./pictures.js";

const cards = [];
const draggedType = () => `text/x-handful-${state.id}`;

export const hasCards = () => cards.length > 0;
export const focusFirst = () => cards[0].input.focus();

class Card {
  constructor(name = null) {
    Object.assign(this, { name, images: [], waiting: [], chosen: null });
    const upload = (files) => this.upload(files);
    this.input = el("input", {
      type: "text",
      value: name ?? "",
      placeholder: "name of a class",
      autocomplete: "off",
      onchange: () => this.rename(),
      onkeydown: ({ key }) => {
        if (key === "Escape") this.input.value = this.name ?? "";
      },
    });
    this.remover = el("button", { className: "bare", onclick: () => this.askRemoval() }, "Remove");
    this.confirm = el("div", { className: "inset", role: "group", hidden: true });
    this.list = el("ul", { className: "thumbs" });
    this.actions = el("div", { className: "inset", role: "group", hidden: true });
    this.add = picker("Add images", upload, { multiple: true });
    this.photo = picker("Take a photo", upload, { capture: "environment", className: "photo" });
    this.hint = el("span", { className: "quiet" });
    this.message = el("p", { className: "message", role: "status" });
    const head = el("div", { className: "row" }, this.input, this.remover);
    const buttons = el("div", { className: "row" }, this.add, this.photo, this.hint);
    const foot = el("div", {}, buttons, this.message);
    this.root = el("section", { className: "card" }, head, this.confirm, this.list, this.actions, foot);
    const dropped = (groups, id) => (id ? this.move(Number(id)) : this.upload(flat(groups)));
    droppable(this.root, dropped, draggedType);
    at("add").before(this.root);
    cards.push(this);
    this.show([]);
  }

  show(images) {
    const there = new Map([...this.list.children].map((item) => [item.image.id, item]));
    for (const image of images) if (!there.delete(image.id)) this.list.append(this.thumb(image));
    for (const item of there.values()) item.remove();
    this.images = images;
    this.choose(images.some((image) => image.id === this.chosen) ? this.chosen : null);
    if (images.length) this.hint.textContent = count(images.length, "image");
    else if (this.name === null) this.hint.textContent = "Say what it shows: the name counts, too.";
    else this.hint.textContent = "No images yet: known by its name alone.";
    this.label();
  }

  label() {
    const unnamed = cards.filter((card) => card.name === null).indexOf(this) + 1;
    const label = this.name ?? `unnamed class ${unnamed}`;
    for (const [node, words] of [
      [this.root, label],
      [this.remover, `Remove ${label}`],
      [this.list, `Images of ${label}`],
      [this.input, `Name of ${this.name === null ? label : `the class ${label}`}`],
      [this.add.lastChild, `Add images to ${label}`],
      [this.photo.lastChild, `Take a photo for ${label}`],
    ])
      node.setAttribute("aria-label", words);
  }

  thumb(image) {
    const facts = {
      className: "thumb",
      "aria-label": image.name || `image ${image.id}`,
      title: image.name,
      "aria-expanded": "false",
      onclick: () => this.choose(this.chosen === image.id ? null : image.id),
      onkeydown: ({ key }) => {
        if (key === "Delete") this.drop(image.id);
      },
    };
    const ondragstart = (event) => event.dataTransfer.setData(draggedType(), image.id);
    const item = el("li", { draggable: true, ondragstart }, el("button", facts, picture(image)));
    return Object.assign(item, { image });
  }

  // Show what can be done with an image; null: with none.
  choose(id) {
    this.chosen = id;
    this.actions.hidden = id === null;
    for (const item of this.list.children)
      item.firstChild.setAttribute("aria-expanded", String(item.image.id === id));
    if (id === null) return;
    const { name } = this.images.find((image) => image.id === id);
    const row = el(
      "div",
      { className: "row" },
      el("button", { onclick: () => this.drop(id) }, "Remove image"),
    );
    const others = state.classes.map((each) => each.name).filter((other) => other !== this.name);
    if (others.length) {
      const options = others.map((other) => el("option", {}, other));
      const select = el("select", { "aria-label": `Class to move ${name} to` }, ...options);
      const onclick = () => cards.find((card) => card.name === select.value)?.move(id);
      row.append(select, el("button", { onclick }, "Move"));
    }
    this.actions.setAttribute("aria-label", name);
    this.actions.replaceChildren(el("p", {}, name), row);
  }

  rename() {
    const name = this.input.value.trim();
    if (!name) this.input.value = this.name ?? "";
    if (!name || name === this.name) return;
    attempt(this.message, async () => {
      try {
        const next =
          this.name === null
            ? await change("POST", "/classes", { name })
            : await change("PATCH", "/classes", { name: this.name, to: name });
        this.name = name;
        take(next);
      } catch (error) {
        this.input.value = this.name ?? name;
        throw error;
      }
      if (this.waiting.length) this.upload(this.waiting.splice(0));
    });
  }

  upload(files) {
    if (!files.length) say(this.message, "Only image files can be dropped here.");
    else attempt(this.message, () => (this.name === null ? this.keepForName(files) : this.send(files)));
  }

  keepForName(files) {
    this.waiting.push(...files);
    this.input.focus();
    say(this.message, `${count(this.waiting.length, "image")} waiting: name the class first.`, true);
  }

  async send(files) {
    const refused = [];
    const refuse = (name, why) =>
      refused.push(why.startsWith(name) ? `Refused: ${why}` : `Refused: ${name}: ${why}`);
    let sent = 0;
    for (const some of portions(files)) {
      if (some.length < files.length)
        say(this.message, [...refused, `${sent} of ${files.length} sent…`].join("\n"), true);
      try {
        const place = `/images?name=${encodeURIComponent(this.name)}`;
        const next = await change("POST", place, form("images", some));
        for (const { name, error } of next.refused ?? []) refuse(name, error);
        take(next);
      } catch (error) {
        if (error.status !== 413)
          throw Object.assign(error, { message: [...refused, error.message].join("\n") });
        for (const { name } of some) refuse(name, error.message);
      }
      sent += some.length;
    }
    say(this.message, refused.join("\n"));
  }

  move(id) {
    if (this.name === null) say(this.message, "Name the class first.", true);
    else if (!this.images.some((image) => image.id === id))
      attempt(this.message, async () => take(await change("PATCH", `/images/${id}`, { name: this.name })));
  }

  drop(id) {
    const place = this.images.findIndex((image) => image.id === id);
    attempt(this.message, async () => {
      take(await change("DELETE", `/images/${id}`));
      const next = this.list.children[Math.min(place, this.images.length - 1)];
      (next?.firstChild ?? this.input).focus();
    });
  }

  askRemoval() {
    if (this.name === null) {
      this.leave();
      return;
    }
    const close = () => {
      this.confirm.hidden = true;
      this.remover.focus();
    };
    const keep = el("button", { onclick: close }, "Keep");
    const remove = el("button", { className: "wrong", onclick: () => this.remove() }, "Remove class");
    const images = this.images.length ? ` and its ${count(this.images.length, "image")}` : "";
    const words = `Remove ${this.name}${images}?`;
    this.confirm.setAttribute("aria-label", words);
    this.confirm.onkeydown = ({ key }) => {
      if (key === "Escape") close();
    };
    this.confirm.replaceChildren(el("p", {}, words), el("div", { className: "row" }, remove, keep));
    this.confirm.hidden = false;
    keep.focus();
  }

  remove() {
    this.confirm.hidden = true;
    attempt(this.message, async () => {
      take(await change("DELETE", `/classes?name=${encodeURIComponent(this.name)}`));
      at("add").focus({ preventScroll: true });
    });
  }

  leave() {
    cards.splice(cards.indexOf(this), 1);
    this.root.remove();
  }
}

// Put files into the class of a name, or into one that waits for a name.
export function fill(name, files = []) {
  const free = (card) => card.name === null && !card.input.value && !card.waiting.length;
  const card = cards.find((each) => name && each.name === name) ?? cards.find(free) ?? new Card();
  if (card.name === null && name) {
    card.input.value = name;
    card.rename();
  }
  if (files.length) card.upload(files);
}

at("add").onclick = () => new Card().input.focus();
droppable(at("add"), (groups) => {
  for (const [name, files] of groups) fill(name, files);
});

watch({
  show(isNew) {
    if (isNew) for (const card of [...cards]) card.leave();
    const names = new Set(state.classes.map((each) => each.name));
    for (const card of [...cards]) if (card.name !== null && !names.has(card.name)) card.leave();
    for (const { name, images } of state.classes)
      (cards.find((card) => card.name === name) ?? new Card(name)).show(images);
    for (const card of cards) if (card.name === null) card.show([]); // they are numbered
    if (isNew) while (cards.length < 2) new Card();
  },
});
