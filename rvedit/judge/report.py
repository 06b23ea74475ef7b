"""report.html: one self-contained page with the tables, the distributions and every item."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from rvedit.judge.scores import AXIS_LABELS
from rvedit.judge.verdict import Verdict
from rvedit.video import temporary_sibling

PICTURE_SIDE = 224
"""Pixels, long side; the judge's own are larger."""
_DATA = "/*DATA*/null"


def write_report(path: Path, summary: dict[str, Any], verdicts: Sequence[Verdict], frames: Path) -> None:
    """Write the page; it needs no network, and no other file."""
    pictures: dict[str, str] = {}
    items: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        item = items.setdefault(
            verdict.item,
            {
                "id": verdict.item,
                "category": verdict.category,
                "instruction": verdict.instruction,
                "source": [],
                "edited": [],
                "verdicts": [],
            },
        )
        for side in ("source", "edited"):
            digests = getattr(verdict, f"{side}_frames")
            if digests and not item[side]:
                item[side] = digests
                for digest in digests:
                    picture = pictures.get(digest) or _picture(frames / f"{digest}.jpg")
                    if picture:
                        pictures[digest] = picture
        scores = verdict.scores
        item["verdicts"].append(
            {
                "judge": verdict.judge,
                "repeat": verdict.repeat,
                "scores": list(scores.values) if scores else None,
                "mean": scores.mean if scores else None,
                "dropped": verdict.dropped,
                "reasoning": verdict.reasoning,
                "model": verdict.model,
            }
        )
    data = {
        "summary": summary,
        "axes": AXIS_LABELS,
        "items": list(items.values()),
        "pictures": pictures,
    }
    template = files("rvedit.judge").joinpath("report.html").read_text(encoding="utf-8")
    # No tag inside an instruction or a reply may act as one.
    encoded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    part = temporary_sibling(path)
    part.write_text(template.replace(_DATA, encoded), encoding="utf-8")
    part.replace(path)


def _picture(path: Path) -> str | None:
    """A small JPEG as a data address; none where the picture is gone."""
    try:
        image = Image.open(path)
        image.draft("RGB", (PICTURE_SIDE, PICTURE_SIDE))
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    except OSError:
        return None
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
