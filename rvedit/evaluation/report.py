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

from rvedit.evaluation.scores import AXIS_LABELS
from rvedit.evaluation.verdict import Verdict
from rvedit.io.manifest import write_text
from rvedit.io.pool import run_in_pool

PICTURE_SIDE = 224
"""Pixels, long side; the judge's own are larger."""
_DATA = "/*DATA*/null"


def write_report(path: Path, summary: dict[str, Any], verdicts: Sequence[Verdict], frames: Path) -> None:
    """Write the page; it needs no network, and no other file."""
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
            item[side] = item[side] or getattr(verdict, f"{side}_frames")
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
        "pictures": _pictures(frames, verdicts),
    }
    template = files("rvedit.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    # No tag inside an instruction or a reply may act as one.
    encoded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    write_text(path, template.replace(_DATA, encoded))


def _pictures(folder: Path, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Small JPEGs as data addresses, by their digests; without those whose file is gone."""
    shown = {digest for verdict in verdicts for digest in (*verdict.source_frames, *verdict.edited_frames)}
    files = [folder / f"{digest}.jpg" for digest in sorted(shown)]
    return {file.stem: small for file, small in run_in_pool(_thumbnail, files, chunk=64) if small}


def _thumbnail(file: Path) -> tuple[Path, str | None]:
    try:
        data = file.read_bytes()
        image = Image.open(BytesIO(data))
        if max(image.size) > PICTURE_SIDE:
            image.draft("RGB", (PICTURE_SIDE, PICTURE_SIDE))
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            buffer = BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=80)
            data = buffer.getvalue()
    except OSError:
        return file, None
    return file, "data:image/jpeg;base64," + base64.b64encode(data).decode()
