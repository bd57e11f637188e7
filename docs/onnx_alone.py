"""Run a file that `handful export` wrote, with onnxruntime, numpy and Pillow alone.

    python onnx_alone.py model.onnx image.png ...

The file normalises by itself; what is left to do is to bring an image to its size. How, stands in the
file's metadata: in words under `preprocessing_in_words`, as JSON under `preprocessing`. Of a classifier that
was calibrated on enough images, it also says which classes an image may be of, at a coverage of 90 %.
"""

import json
import re
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1])
facts = session.get_modelmeta().custom_metadata_map
names, how = json.loads(facts["class_names"]), json.loads(facts["preprocessing"])
height, width = how["size"]
threshold = json.loads(facts.get("set_thresholds", "{}")).get("0.9")  # one for all classes, or one for each
thresholds = threshold if isinstance(threshold, list) or threshold is None else [threshold] * len(names)
method = Image.Resampling[how["interpolation"].upper()]


def to_bytes(levels):
    """Scale levels beyond 8 bits to 0..255."""
    numbers, floats, rule = levels.astype(float), levels.dtype.kind == "f", how["levels"]
    whole = np.rint(numbers * 255)
    if floats and whole.min() >= 0 and whole.max() <= 255 and abs(numbers * 255 - whole).max() < 0.1:
        return whole.astype(np.uint8)
    step = max(levels.shape[:2]) // rule["grid"] + 1
    low, high = np.percentile(numbers[::step, ::step], rule["tails"])
    if low == high:
        low, high = numbers.min(), numbers.max()
    top = next((top for top in rule["ranges"][not floats :] if low >= 0 and high <= top), 0)
    if low == high or (top and high - low >= rule["share"] * top):
        low, high = 0, top or rule["ranges"][-1]
    return np.clip((numbers - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)


for path in sys.argv[2:]:
    image = Image.open(path)
    deep = any(re.search(r";16[BLN]\b", str(tile[3])) for tile in image.tile)  # Pillow reads the upper 8 bits
    image = ImageOps.exif_transpose(image)  # upright
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_bytes(np.asarray(image)))
    elif deep:
        colours = np.array(image.convert("RGBA"))
        colours[..., :3] = to_bytes(colours[..., :3])
        image = Image.fromarray(colours)
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")  # on white
    if how["resize"] == "shortest":  # in proportion, then the centre
        image = image.resize([side * width // min(image.size) for side in image.size], method)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    elif how["resize"] == "squash":  # whatever the proportions
        image = image.resize((width, height), method)
    else:
        sys.exit(facts["preprocessing_in_words"])
    probabilities = session.run(["probabilities"], {"images": np.asarray(image)[None]})[0][0]
    best = probabilities.argmax()
    line = f"{path}: {names[best]} {100 * probabilities[best]:.1f} %"
    if thresholds:  # of a calibrated classifier: which classes it may be, at a stated rate
        inside = [row for row in probabilities.argsort()[::-1] if probabilities[row] >= thresholds[row]]
        line += f"; set at 90 %: {', '.join(names[row] for row in inside) or 'none of these is likely'}"
    print(line)
