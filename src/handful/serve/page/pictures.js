// Thumbnails of the draft's images. They come by fetch, for the token's sake, once they are in sight.

import { api, path, state, watch } from "./draft.js";
import { el } from "./elements.js";

const pictures = new Map();

const sight = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) if (isIntersecting) load(target);
});

async function load(target) {
  sight.unobserve(target);
  const { from, name } = target.image;
  if (!pictures.has(from)) {
    const blob = api("GET", from).then((answer) => answer.blob());
    pictures.set(from, blob.then(URL.createObjectURL));
  }
  try {
    target.src = await pictures.get(from);
  } catch {
    target.replaceWith(name);
  }
}

// Give an image's thumbnail, or its name where there is no picture.
export function picture({ id, name, has_picture: known }) {
  if (!known) return name || "no picture";
  const image = { name, from: path(`/images/${id}`) };
  const img = Object.assign(el("img", { alt: "", draggable: false }), { image });
  sight.observe(img);
  return img;
}

function forget(from) {
  pictures.get(from).then(URL.revokeObjectURL, () => {});
  pictures.delete(from);
}

watch({
  show(isNew) {
    const images = isNew ? [] : state.classes.flatMap((each) => each.images);
    const there = new Set(images.map((image) => path(`/images/${image.id}`)));
    for (const from of pictures.keys()) if (!there.has(from)) forget(from);
  },
});
