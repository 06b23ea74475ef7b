"""Edits of fixed clips while a model is trained: where one would rather look than read a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rvedit.io.clips import fitting_bucket, read_pair
from rvedit.io.frames import Frames
from rvedit.io.manifest import read_manifest
from rvedit.io.video import side_by_side, temporary_sibling, write_clip
from rvedit.playground.world import FRAME_RATE, render, sample_triplet
from rvedit.training.recipe import Recipe


@dataclass(frozen=True)
class ValidationClip:
    """A clip to be edited, and the true edit to compare with."""

    source: Frames
    target: Frames
    instruction: str
    fps: int


def validation_clips(recipe: Recipe) -> list[ValidationClip]:
    """Held-out scenes of the playground, or the first rows of a manifest that fit the first shape."""
    data, count = recipe.data, recipe.validation.count
    shape = data.shapes[0]
    size = (shape.num_frames, shape.height, shape.width)
    if data.source == "playground":
        triplets = [sample_triplet(data.seed, index, "test") for index in range(count)]
        return [
            ValidationClip(render(t.source, *size), render(t.target, *size), t.instruction, FRAME_RATE)
            for t in triplets
        ]
    manifest = Path(str(data.manifest))
    shown = []
    fitting = (t for t in read_manifest(manifest) if fitting_bucket(data.shapes, t) == 0)
    for triplet in islice(fitting, count):
        source, target = read_pair(manifest, triplet, shape)
        shown.append(ValidationClip(source, target, triplet.instruction, max(1, round(triplet.fps))))
    return shown


def write_validation(
    folder: Path, step: int, clips: Sequence[ValidationClip], edits: Sequence[Frames]
) -> None:
    """Write `step_N/I.mp4`, source and edit side by side, and `step_N.png`.

    A row of the picture is a clip: the first and last frame of source, edit and true edit.
    """
    home = folder / f"step_{step:08d}"
    home.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (clip, edit) in enumerate(zip(clips, edits, strict=True)):
        frames = np.stack([side_by_side(a, b) for a, b in zip(clip.source, edit, strict=True)])
        write_clip(home / f"{index}.mp4", frames, clip.fps)
        ends = [video[at] for video in (clip.source, edit, clip.target) for at in (0, -1)]
        rows.append(np.concatenate(ends, axis=1))
    picture = folder / f"step_{step:08d}.png"
    part = temporary_sibling(picture)
    Image.fromarray(np.concatenate(rows)).save(part)
    part.replace(picture)
