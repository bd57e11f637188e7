"""The model card of a saved classifier: README.md with YAML front matter, as the Hugging Face hub reads it.

It says what the facts say and no more: data, selection, scores, backbone and its licence.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePath
from typing import Any

from handful.errors import counted
from handful.summary import summary

FEW_CLASSES, FEW_IMAGES = 50, 4
LICENCES = (
    (r"(timm/\S+\.openai|openai/clip-\S+)", "mit", "MIT, as OpenAI's CLIP repository says"),
    (r"laion/CLIP-\S*(laion2B|DataComp)\S*", "mit", "MIT, as OpenCLIP's models of LAION-2B and DataComp are"),
    (r"timm/ViT-\S+-SigLIP\S*", "apache-2.0", "Apache-2.0, as Google's SigLIP models are"),
)
"""What is known of backbones by their ids on the hub; of any other one nothing is said."""
CHOSEN = {
    "fixed": "the same for every task; none was chosen by looking at images",
    "support": "by cross-validation inside the support set; no other image was looked at",
    "val": "on a validation split, beside the support set",
    "oracle": "on the images of the test, as some published recipes do: scores there are too good",
}
SIGNED = "<!-- written by handful {} -->"

SETS = (
    " It can also name the classes that an image may be of, with a stated coverage: `predict_set` in Python, "
    "`handful predict --coverage 0.9`."
)


def model_card(facts: dict[str, Any], repo: str = "") -> str:
    """Write down for people what a checkpoint knows of itself.

    Parameters
    ----------
    facts
        As `head.json` holds them.
    repo
        `org/name` on the hub, for the lines on how to use it; empty for a folder.
    """
    hub, licence, terms = find_licence(str(facts["backbone"].get("name")))
    parts = [
        _front(facts, hub, licence),
        f"# {_code(facts['method'])}, {len(facts['class_names'])} classes",
        _what_it_is(facts, _called(facts)),
        "## Classes\n\n" + _list(facts["class_names"], FEW_CLASSES),
        "## Data\n\n" + _data(facts),
        "## How hyper-parameters were chosen\n\n" + _chosen(facts),
        "## Scores\n\n" + _scores(facts),
        "## How to use it\n\n" + _use(facts, repo),
        "## Backbone and licence\n\n" + _backbone(facts, hub, licence, terms),
        "## Limits\n\n" + _limits(facts),
    ]
    text = "\n\n".join(parts) + "\n\n"
    return _sign(text.encode(errors="replace").decode())  # a file name may be no Unicode


def is_own(card: bytes) -> bool:
    """Say whether a card is as handful wrote it: one that a person changed is left alone."""
    whole = card.decode(errors="replace").replace("\r\n", "\n")
    text, mark, _ = whole.rpartition(SIGNED.partition("{}")[0])
    return bool(mark) and _sign(text) == whole


def scores_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the recorded scores that are whole."""
    found = facts.get("scores")
    numbers = ("accuracy", "zero_shot", "images")
    return [
        score
        for score in (found if isinstance(found, list) else [])
        if isinstance(score, dict) and all(isinstance(score.get(name), int | float) for name in numbers)
    ]


def find_licence(backbone: str) -> tuple[str, str, str]:
    """Give a backbone's id on the hub, its licence's id there, and the licence in words; empty if unknown."""
    if backbone == "mini":
        return "", "other", (
            "its weights were trained on photographs of ImageNet among others, and because of ImageNet's "
            "terms they are for research and demonstration"
        )  # fmt: skip
    hub = _hub_id(backbone)
    for pattern, licence, words in LICENCES:
        if re.fullmatch(pattern, hub):
            return hub, licence, words
    return hub, "", ""


def _hub_id(backbone: str) -> str:
    """Give `org/name` of a backbone on the hub, or nothing."""
    found = backbone.removeprefix("hf-hub:")
    if found == backbone:
        model, _, tag = backbone.partition("/")
        if not tag or backbone.startswith("{"):
            return ""
        from open_clip import get_pretrained_cfg  # slow; whoever loaded such a backbone has it already

        found = get_pretrained_cfg(model, tag).get("hf_hub") or ""
    whole = re.match(r"[\w.-]+/[\w.-]+", found)
    return whole.group() if whole else ""


def _front(facts: dict[str, Any], hub: str, licence: str) -> str:
    method = [facts["method"]] if re.fullmatch(r"[a-z-]+", facts["method"]) else []
    lines = [
        "---",
        "library_name: handful",
        "pipeline_tag: image-classification",
        f"tags: [{', '.join(['clip', 'few-shot', 'open_clip', *method])}]",
        *([f"license: {licence}"] if licence else []),
        *([f'base_model: "{hub}"'] if hub else []),
        "---",
    ]
    return "\n".join(lines)


def _what_it_is(facts: dict[str, Any], backbone: str) -> str:
    versions = facts.get("versions")
    made = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "handful"
    return (
        f"A few-shot image classifier: the method {_code(facts['method'])} of handful on the backbone "
        f"{backbone}. In here is only what was learned (`head.safetensors`) and what is known of it "
        f"(`head.json`), not the backbone. Saved {_plain(facts.get('saved') or 'at an unknown time')} with "
        f"{_plain(made)}."
    )


def _data(facts: dict[str, Any]) -> str:
    shots, learned_on = facts.get("shots") or [], facts.get("learned_on") or []
    names = [_short(name) for name in facts.get("support") or []]
    if not shots:
        lines = ["- support set: " + ("nothing is recorded of it" if learned_on else "no image (zero-shot)")]
    else:
        each = f"{min(shots)}" if min(shots) == max(shots) else f"{min(shots)} to {max(shots)}"
        lines = [f"- support set: {counted(sum(shots))}, {each} for each class"]
    draw = facts.get("draw")
    if isinstance(draw, dict) and draw:
        found = {name: _plain(value) for name, value in draw.items()}
        shown = f"{found.get('shots')} image{'s' * (found.get('shots') != '1')}"
        lines.append(
            f"- drawn from {found.get('data')}: {shown} for each class, CoOp's draw of seed "
            f"{found.get('seed')}"
        )
    if learned_on:
        lines.append(f"- learned on images of other classes: {_list(learned_on, 20)}")
    if names:
        lines.append(f"- these images are called: {_list(names, FEW_IMAGES)} (`support` in `head.json`)")
    return "\n".join(lines)


def _chosen(facts: dict[str, Any]) -> str:
    selection, templates = facts["selection"], facts.get("templates") or []
    by_class = "by class, as " if isinstance(templates, dict) else ""
    if isinstance(templates, dict):
        templates = [text for texts in templates.values() for text in texts]
    words = summary(facts["selected"]) if isinstance(facts.get("selected"), dict) else {}
    return "\n".join([
        f"- selection `{selection}`: {CHOSEN.get(selection, 'not known to this version')}",
        *(f"- {name}: {text}" for name, text in words.items()),
        f"- values: {_json(_rounded(facts['selected'])) if facts.get('selected') else 'none to choose'}",
        f"- parameters: {_json(facts['parameters'])}",
        f"- templates: {by_class}{', '.join(map(_code, templates[:FEW_IMAGES])) or 'none'}"
        + (f" and {len(templates) - FEW_IMAGES} more" if len(templates) > FEW_IMAGES else ""),
    ])  # fmt: skip


def _scores(facts: dict[str, Any]) -> str:
    lines = ["None is recorded: `handful evaluate FOLDER DATA --record` records one."]
    if scores := scores_of(facts):
        lines = [
            "| data | images | accuracy | zero-shot | date | balanced accuracy | balanced zero-shot |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_plain(score.get('data'))} | {score['images']} | {100 * score['accuracy']:.2f} % "
            f"| {100 * score['zero_shot']:.2f} % | {_plain(score.get('date'))} "
            f"| {_percent(score.get('balanced_accuracy'))} | {_percent(score.get('balanced_zero_shot'))} |"
            for score in scores
        ]
        lines += [""] if any(_seen(score) for score in scores) else []
        lines += [
            f"**The score on {_plain(score.get('data'))} says little of new images**: the classifier had "
            f"seen {_seen(score)} of these {score['images']} images, in its support set or where its "
            "hyper-parameters were chosen."
            for score in scores
            if _seen(score)
        ]
    calibration = facts.get("calibration")
    if isinstance(calibration, dict):
        found = {name: _plain(value) for name, value in _rounded(calibration).items()}
        weight = found.get("probability_weight")
        more = f", plus {weight} times its largest probability," if weight else ""
        lines += [
            "",
            f"Probabilities are calibrated on {found.get('images')} held-out images: temperature "
            f"{found.get('temperature')}. Where it is asked to, it calls an image unknown whose cosine to "
            f"the nearest class mean{more} is below {found.get('threshold')}; stated rate of false alarms: "
            f"{found.get('false_alarm')}."
            + (" That is, none: there were too few images." if calibration.get("threshold") == -1 else "")
            + (SETS if "balance" in calibration else ""),
        ]
    return "\n".join(lines)


def _seen(score: dict[str, Any]) -> int:
    """How many images of a score the classifier had seen; 0 where nothing is known of them."""
    seen = score.get("seen")
    return seen if isinstance(seen, int) and seen > 0 else 0


def _percent(share: Any) -> str:
    return f"{100 * share:.2f} %" if isinstance(share, int | float) else ""


def _use(facts: dict[str, Any], repo: str) -> str:
    folder = re.sub(r"[^\w.-]", "-", repo.rpartition("/")[2]) or "FOLDER"
    files = _files(facts)
    extra = f", backbone=handful.load_backbone({files[0]!r}, weights={files[1]!r})" if files else ""
    extra += ", method=ITS_CLASS" if ":" in facts["method"] else ""
    shell = [f"handful pull {repo} --out {folder}"] if repo else []
    shell += [] if extra else [f"handful predict {folder} photo.jpg"]
    lines = ["`FOLDER` is the folder that this card lies in.\n"] if not repo else []
    lines += ["```shell", *shell, "```\n"] if shell else []
    get = f'handful.pull("{repo}", "{folder}")' if repo else f'"{folder}"'
    lines += [
        "```python",
        "import handful",
        "",
        f"clf = handful.load({get}{extra})",
        'clf.predict(["photo.jpg"])',
        "```",
    ]
    return "\n".join(lines)


def _backbone(facts: dict[str, Any], hub: str, licence: str, terms: str) -> str:
    fingerprint = _plain(facts["backbone"].get("fingerprint"))[:16] or "none"
    where = f", [{hub}](https://huggingface.co/{hub})" if hub else ""
    lines = [f"- backbone: {_called(facts)}{where}, fingerprint `{fingerprint}`; another one is refused"]
    lines.append(f"- its licence: {terms or 'unknown: look at its own card'}")
    if licence:
        lines.append(
            "- `license` above is the backbone's; the images that this was learned from may have terms of "
            "their own"
        )
    return "\n".join(lines)


def _limits(facts: dict[str, Any]) -> str:
    lines = [
        "- It knows these classes only, and takes an image of anything else for one of them"
        + (" unless it is asked to say unknown." if facts.get("calibration") else "."),
        "- It was learned from a handful of images: measure it on images like yours before you rely on it.",
    ]
    if facts["selection"] == "oracle":
        lines.append("- Its hyper-parameters were chosen on images of the test: scores there are too good.")
    if facts["backbone"].get("name") == "mini":
        lines.append("- `mini` is a demonstration backbone: don't judge the method by this accuracy.")
    return "\n".join([*lines, *(f"- Note: {_plain(note)}" for note in facts.get("notes") or [])])


def _files(facts: dict[str, Any]) -> tuple[str, str] | None:
    """The file names of a backbone that was loaded from files; its folders are nobody's business."""
    try:
        paths = json.loads(str(facts["backbone"].get("name")))
        return PurePath(paths["config"]).name, PurePath(paths["weights"]).name
    except (ValueError, KeyError, TypeError):
        return None


def _called(facts: dict[str, Any]) -> str:
    files = _files(facts)
    if files:
        return f"from the files {_code(files[0])} and {_code(files[1])}"
    name = facts["backbone"].get("name")
    return _code(name) if name else "that made the features it was given (not recorded)"


def _short(path: Any) -> str:
    """The last two parts of a path: class folder and file."""
    return "/".join(PurePath(str(path)).parts[-2:])


def _plain(value: Any) -> str:
    """Text for one line of Markdown, with nothing that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str("" if value is None else value).split()))


def _code(value: Any) -> str:
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def _json(value: Any) -> str:
    return _code(json.dumps(value, ensure_ascii=False))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers with four digits: `head.json` has them all."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


def _list(values: list[Any], most: int) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(_plain, values[:most])) + more


def _sign(text: str) -> str:
    return text + SIGNED.format(hashlib.sha256(text.encode()).hexdigest()[:16]) + "\n"
