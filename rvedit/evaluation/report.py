"""`report.html`: a self-contained page with the tables, the distributions and every item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rvedit.evaluation.verdict import Verdict
from rvedit.io.pages import jpeg_url, write_page
from rvedit.io.pool import run_in_pool

THUMBNAIL_SIDE = 224
"""Pixels of the longer side; the judge sees larger ones."""


def write_report(path: Path, summary: dict[str, Any], verdicts: Sequence[Verdict], frames: Path) -> None:
    """Write the page; `frames` is the folder of the frames that the judges saw."""
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
        item["source"] = item["source"] or verdict.source_frames
        item["edited"] = item["edited"] or verdict.edited_frames
        names = ("judge", "repeat", "dropped", "reasoning", "protocol", "measures", "answers")
        shown = {name: getattr(verdict, name) for name in names}
        scores = verdict.scores
        item["verdicts"].append({**shown, "scores": scores and scores.values, "mean": scores and scores.mean})
    data = {
        "summary": summary,
        "axes": summary["axis_labels"],
        "items": list(items.values()),
        "pictures": _thumbnails(frames, verdicts),
    }
    write_page(path, "rvedit.evaluation", "report.html", data)


def _thumbnails(folder: Path, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return data URLs of small JPEGs by digest; frames whose file is missing are left out."""
    shown = {digest for verdict in verdicts for digest in (*verdict.source_frames, *verdict.edited_frames)}
    files = [folder / f"{digest}.jpg" for digest in sorted(shown)]
    return {file.stem: small for file, small in run_in_pool(_thumbnail, files, chunk=64) if small}


def _thumbnail(file: Path) -> tuple[Path, str | None]:
    try:
        with Image.open(file) as image:
            image.draft("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            return file, jpeg_url(image, quality=80)
    except OSError:
        return file, None
