"""Edits of fixed clips during training, to look at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rvedit.io.clips import UnreadableClip, fitting_bucket, read_pair
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames
from rvedit.io.manifest import read_manifest
from rvedit.io.temporary import atomic_path
from rvedit.io.video import side_by_side, write_clip
from rvedit.playground.world import FRAME_RATE, render, sample_triplet
from rvedit.training.recipe import Recipe


@dataclass(frozen=True)
class ValidationClip:
    """A clip to edit, and its target to compare with."""

    source: Frames
    target: Frames
    instruction: str
    fps: int


def validation_clips(recipe: Recipe) -> list[ValidationClip]:
    """Return held-out scenes of the playground, or the first rows of a manifest that fit the first shape."""
    data, count = recipe.data, recipe.validation.count
    shape = data.shapes[0]
    size = (shape.num_frames, shape.height, shape.width)
    if data.source == "playground":
        triplets = [sample_triplet(data.seed, index, "test", realism=data.realism) for index in range(count)]
        return [
            ValidationClip(render(t.source, *size), render(t.target, *size), t.instruction, FRAME_RATE)
            for t in triplets
        ]
    manifest = Path(str(data.manifest))
    clips: list[ValidationClip] = []
    fitting = (t for t in read_manifest(manifest) if fitting_bucket(data.shapes, t) == 0)
    while len(clips) < count and (triplet := next(fitting, None)):
        try:
            source, target = read_pair(manifest, triplet, shape)
        except UnreadableClip as error:
            warnings.warn(f"{error}; validation shows another clip", stacklevel=2)
            continue
        clips.append(ValidationClip(source, target, triplet.instruction, max(1, round(triplet.fps))))
    if not clips:
        raise UserError(
            f"{manifest}: has no clip of the first shape to validate with: set validation.every: 0"
        )
    return clips


def write_validation(
    folder: Path, step: int, clips: Sequence[ValidationClip], edits: Sequence[Frames]
) -> None:
    """Write `step_N/I.mp4`, source and edit side by side, and `step_N.png`.

    Each row of the image has the first and last frame of a clip's source, edit and target.
    """
    clip_folder = folder / f"step_{step:08d}"
    clip_folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (clip, edit) in enumerate(zip(clips, edits, strict=True)):
        source, target = clip.source[: len(edit)], clip.target[: len(edit)]  # one window is edited
        frames = np.stack([side_by_side(a, b) for a, b in zip(source, edit, strict=True)])
        write_clip(clip_folder / f"{number}.mp4", frames, clip.fps)
        ends = [video[index] for video in (source, edit, target) for index in (0, -1)]
        rows.append(np.concatenate(ends, axis=1))
    sheet = folder / f"step_{step:08d}.png"
    with atomic_path(sheet) as part:
        Image.fromarray(np.concatenate(rows)).save(part)
