"""Run a file that `handful export` wrote, with onnxruntime, numpy and Pillow alone.

    python onnx_alone.py model.onnx image.png ...

The file normalises by itself; what is left to do is to bring an image to its size. How, stands in the
file's metadata: in words under `preprocessing_in_words`, as JSON under `preprocessing`.
"""

import json
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
method = Image.Resampling[how["interpolation"].upper()]

for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")  # upright
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
    print(f"{path}: {names[best]} {100 * probabilities[best]:.1f} %")
