"""Edits and losses of clips that are not trained on, during training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rvedit.io.clips import UnreadableClip, fitting_bucket, read_pair
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames
from rvedit.io.manifest import read_manifest
from rvedit.io.temporary import atomic_path
from rvedit.io.video import side_by_side, write_clip
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.world import FRAME_RATE, render, sample_triplet
from rvedit.training.data import split_held_out
from rvedit.training.distributed import Processes
from rvedit.training.recipe import Recipe
from rvedit.training.step import TripletBatch, losses_at, sample_noise_and_timesteps


@dataclass(frozen=True)
class ValidationClip:
    """A clip to edit, and its target to compare with."""

    source: Frames
    target: Frames
    instruction: str
    fps: int


def validation_clips(recipe: Recipe) -> list[ValidationClip]:
    """Return held-out scenes of the playground, or rows of a manifest that fit the first shape that some fit.

    Without `validation.held_out`, the rows of a manifest are its first ones, which are also trained on.
    """
    data, count = recipe.data, recipe.validation.count
    shape = data.shapes[0]
    size = (shape.num_frames, shape.height, shape.width)
    if data.source == "playground":
        scenes = [sample_triplet(data.seed, index, "test", realism=data.realism) for index in range(count)]
        return [
            ValidationClip(render(s.source, *size), render(s.target, *size), s.instruction, FRAME_RATE)
            for s in scenes
        ]
    manifest = Path(str(data.manifest))
    triplets = read_manifest(manifest)
    if recipe.validation.held_out:
        triplets = split_held_out(triplets, recipe.validation.held_out)[1]
    buckets = [fitting_bucket(data.shapes, triplet) for triplet in triplets]
    first = min((bucket for bucket in buckets if bucket is not None), default=0)
    shape = data.shapes[first]
    clips: list[ValidationClip] = []
    fitting = (t for t, bucket in zip(triplets, buckets, strict=True) if bucket == first)
    while len(clips) < count and (triplet := next(fitting, None)):
        try:
            source, target = read_pair(manifest, triplet, shape)
        except UnreadableClip as error:
            warnings.warn(f"{error}; validation shows another clip", stacklevel=2)
            continue
        clips.append(ValidationClip(source, target, triplet.instruction, max(1, round(triplet.fps))))
    if not clips:
        raise UserError(
            f"{manifest}: has no clip to validate with: set validation.every: 0, or prepare longer clips"
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


def held_out_losses(
    models: RVEDiTPipeline,
    batch_of: Callable[[int], TripletBatch],
    count: int,
    recipe: Recipe,
    processes: Processes,
) -> dict[str, float]:
    """Return the mean L_fm over `count` held-out samples at each of `validation.timesteps`.

    `batch_of` returns a sample as a batch with latents, on the device. The samples are shared out over the
    processes. Each has the same noise at every time and in every validation.
    """
    times = recipe.validation.timesteps
    sums = torch.zeros(len(times), dtype=torch.float64)
    at_once = processes.data_count
    for number in range(processes.data_rank, -(-count // at_once) * at_once, at_once):
        # With sharded weights all processes compute equally often.
        batch = batch_of(number % count)
        latents = batch.reference.latents
        assert latents is not None
        _, noise, _ = sample_noise_and_timesteps(
            recipe.seed, [number], latents.shape[1:], recipe.flow.shared_noise_ratio
        )
        noise = noise.to(latents.device)
        for index, time in enumerate(times):
            t = torch.full((1,), time, device=latents.device)
            loss = losses_at(models, batch, t, noise, depth=None)["loss_fm"]
            sums[index] += float(loss) * (number < count)
    names = [f"held_out_loss_t{time:g}" for time in times]
    means = processes.mean(dict(zip(names, (sums * at_once / count).tolist(), strict=True)))
    return {**means, "held_out_loss": sum(means.values()) / len(means)} if means else {}
