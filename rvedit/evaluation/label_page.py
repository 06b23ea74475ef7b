"""A page on which a person rates edits beside their sources, and saves the table of `human_labels`."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rvedit.evaluation.scores import AXIS_LABELS
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder
from rvedit.io.pages import write_page

MEGABYTE = 10**6
SCALE = (1, 4)
ANCHORS = {
    "ic": ("not done, or something else", "partly done", "done, but for a detail", "all done as asked"),
    "cf": ("changed all over", "several or large changes", "one small change", "nothing else changed"),
    "vq": ("broken", "clear flaws or flicker", "small flaws", "clean and steady"),
}
"""What the scores 1 to 4 mean, by axis."""
QUESTIONS = {
    "ic": "Is the requested edit there?",
    "cf": "Is the rest as it was?",
    "vq": "Is it free of artifacts and flicker?",
}
_PLAYABLE = {".mp4", ".m4v", ".mov", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class LabelPage:
    """A page that was written."""

    path: Path
    items: int
    missing: tuple[str, ...]
    """Items without an edit."""
    unplayable: tuple[str, ...]
    """Clips of formats that browsers do not show."""
    embedded: bool
    """Whether the page has the clips in it, and can be sent alone; else it links to them."""


def write_label_page(edits: Path, bench: Path | None, path: Path, max_bytes: int) -> LabelPage:
    """Write the page for a folder of edits.

    The clips are embedded if all of them together have at most `max_bytes`; else the page has links to them,
    relative to its own folder. Raises UserError if no item has an edit.
    """
    items = read_bench(bench or edits)
    found = resolve_edits(items, edits)
    shown = [item for item in items if item.id in found]
    if not shown:
        raise UserError(f"{edits}: has no edit of any of the {len(items)} items: give the list with --bench")
    if lost := next((item for item in shown if not os.path.isfile(item.source)), None):
        raise UserError(f"{lost.source}: no such file, the source of {lost.id}: is `bench` the right list?")
    clips = list(dict.fromkeys(clip for item in shown for clip in (item.source, found[item.id])))
    embedded = sum(clip.stat().st_size for clip in clips) <= max_bytes
    prepare_folder(path.parent)
    data = {
        "id": _digest(shown, found),
        "scale": SCALE,
        "axes": [
            {"key": key, "label": label, "question": QUESTIONS[key], "anchors": ANCHORS[key]}
            for key, label in AXIS_LABELS.items()
        ],
        "items": [
            {
                "id": item.id,
                "instruction": item.instruction,
                "source": clips.index(item.source),
                "edited": clips.index(found[item.id]),
            }
            for item in shown
        ],
        "clips": [_clip(clip, path.parent, embedded) for clip in clips],
    }
    write_page(path, "rvedit.evaluation", "label.html", data)
    missing = tuple(item.id for item in items if item.id not in found)
    unplayable = tuple(clip.name for clip in clips if clip.suffix.lower() not in _PLAYABLE)
    return LabelPage(path, len(shown), missing, unplayable, embedded)


def _digest(items: Sequence[BenchItem], edits: Mapping[str, Path]) -> str:
    """Return a short digest of items and edits, under which a browser keeps their scores."""
    digest = hashlib.sha256(json.dumps([[item.id, item.instruction] for item in items]).encode())
    for item in items:
        with edits[item.id].open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _clip(clip: Path, folder: Path, embedded: bool) -> dict[str, str]:
    """Return a clip's MIME type, and its content in base64 or its address relative to the page's folder."""
    kind = mimetypes.guess_type(clip.name)[0] or "video/mp4"
    kind = "video/mp4" if kind == "video/quicktime" else kind  # which Chromium refuses, though it can play it
    if embedded:
        return {"type": kind, "data": base64.b64encode(clip.read_bytes()).decode()}
    return {"type": kind, "url": quote(Path(os.path.relpath(clip, folder)).as_posix())}
