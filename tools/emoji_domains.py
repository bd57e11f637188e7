"""Write drawing styles of emoji as domains that share classes, a table for each.

    uv run python tools/emoji_domains.py EMOJI_FOLDER OUT [--by subgroup] [STYLE ...]
    handful bench domain-shift --data OUT/twemoji.jsonl --data OUT/noto.jsonl --data OUT/fluent-flat.jsonl

EMOJI_FOLDER holds `*.webp` with `*.json` (`texts`, `style`, `codepoint`, `subgroup`). By `subgroup`, a class
is one ("animal mammal"), and a third of its emoji are the test part, the same ones in every style, so that
a style is tested on emoji that were not learned in any. By `codepoint`, a class is one emoji: the first
style has one image of each to learn on, and the others test them.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from handful.data import ImageSet

FEWEST = 12
"""Emoji of a subgroup that every style draws; smaller ones are left out."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("emoji", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("styles", nargs="*", default=["twemoji", "noto", "fluent-flat"])
parser.add_argument("--by", choices=["subgroup", "codepoint"], default="subgroup")


def read(folder: Path, styles: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Read what is known of each emoji, by style and codepoint; only those that every style draws."""
    found: dict[str, dict[str, dict[str, Any]]] = {style: {} for style in styles}
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_bytes())
        if facts["style"] in found:
            image = str(path.with_suffix(".webp").absolute())
            found[facts["style"]].setdefault(facts["codepoint"], {**facts, "path": image})
    common = set.intersection(*(set(own) for own in found.values()))
    return {style: {code: own[code] for code in sorted(common)} for style, own in found.items()}


def by_subgroup(emoji: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Give the rows of one style: a third of each class is tested."""
    classes: dict[str, list[str]] = defaultdict(list)
    for code, facts in emoji.items():
        classes[facts["subgroup"].replace("-", " ")].append(code)
    rows = []
    for name, codes in sorted(classes.items()):
        if len(codes) >= FEWEST:
            ranked = sorted(codes, key=lambda code: zlib.crc32(code.encode()))
            for rank, code in enumerate(ranked):
                part = "test" if rank < len(ranked) // 3 else "train"
                rows.append({"path": emoji[code]["path"], "label": name, "split": part})
    return rows


def by_codepoint(emoji: dict[str, dict[str, Any]], part: str) -> list[dict[str, str]]:
    """Give the rows of one style; of emoji with the same name the first stays."""
    names = {facts["texts"][0]: facts["path"] for facts in reversed(emoji.values())}
    return [{"path": path, "label": name, "split": part} for name, path in sorted(names.items())]


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (style, emoji) in enumerate(read(args.emoji, args.styles).items()):
        part = "train" if number == 0 else "test"
        rows = by_subgroup(emoji) if args.by == "subgroup" else by_codepoint(emoji, part)
        table = args.out / f"{style}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        images = ImageSet.from_table(table)
        print(f"{table}: {len(images)} images, {len(images.class_names)} classes")
