"""The reference judge: exact scores of edits whose target is known, as in the playground.

Each axis is a function of a metric of the whole clips (rvedit/evaluation/measures.py), mapped to 1 ... 100:

- IC: 1 + 99 clip(G, 0, 1) with the edit gain G in the changed region, 1 - MSE(edit, target) / MSE(source,
  target). The unedited source gets 1, the target 100.
- CF: 1 + 99 clip((P - 15) / 30, 0, 1) with the PSNR P to the target outside the changed region, in dB. If the
  edit changes the whole frame, as a style does, P is the PSNR of the edges, i.e. of the horizontal and
  vertical differences of brightness, so that structure counts and not brightness.
- VQ: 1 + 99 exp(-I) with the instability I = mean |d(edit) - d(target)| / (mean |d(target)| + 1/255), where d
  is the difference of consecutive frames. Flicker and missing motion raise I. A still gets 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation

from rvedit.evaluation.computed import ComputedJudge, Measures
from rvedit.evaluation.judges import Case
from rvedit.evaluation.measures import changes, decibels, edit_gain, flicker, preservation
from rvedit.evaluation.protocols import JudgeProtocol
from rvedit.evaluation.request import Probe
from rvedit.evaluation.scores import Scores
from rvedit.io.chat import Journal
from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.io.video import VideoReader
from rvedit.io.video.clip import Frames
from rvedit.playground.world import edit_mask

VERSION = 1
CODEC_NOISE = 24
"""Levels, of 255, by which unchanged pixels of two compressed clips may differ."""
MIN_PSNR, PSNR_RANGE = 15.0, 30.0


def measure(source: Frames, edited: Frames, target: Frames, whole_frame: bool) -> Measures:
    """Return gain, preservation (dB), instability and flicker of clips (t, h, w, 3) of equal shape.

    `whole_frame`: the edit is meant to change the whole frame. Raises UserError if source equals target.
    """
    region = np.ones(source.shape[:3], bool) if whole_frame else changed_region(source, target)
    if not region.any() or not edit_mask(source, target, 0)[region].any():
        raise UserError("source and target are the same: there is no edit to measure")
    outside = preservation(edited, target, region)
    return {
        "gain": edit_gain(source, edited, target, region),
        "preservation": edge_psnr(edited, target) if outside is None else outside,
        "instability": instability(edited, target),
        "flicker": flicker(edited),
        "target_flicker": flicker(target),
    }


def scores_of(measures: Measures) -> Scores:
    """Return the scores for the metrics of `measure`."""
    gain, psnr, unstable = (float(measures[name] or 0.0) for name in ("gain", "preservation", "instability"))

    def scale(value: float) -> float:
        return round(1 + 99 * min(1.0, max(0.0, value)), 2)

    return Scores(scale(gain), scale((psnr - MIN_PSNR) / PSNR_RANGE), scale(math.exp(-unstable)))


def changed_region(source: Frames, target: Frames) -> np.ndarray:
    """Return the mask (t, h, w) of pixels that differ by more than compression noise, plus two pixels."""
    return np.asarray(
        binary_dilation(edit_mask(source, target, CODEC_NOISE), np.ones((1, 3, 3), bool), iterations=2)
    )


def edge_psnr(edited: Frames, target: Frames) -> float:
    """Return the PSNR of brightness differences between neighboring pixels, in dB, at most 60."""
    a, b = (clip.astype(np.float32).mean(axis=-1) / 255 for clip in (edited, target))
    error = np.mean([np.square(np.diff(a, axis=axis) - np.diff(b, axis=axis)).mean() for axis in (1, 2)])
    return decibels(error)


def instability(edited: Frames, target: Frames) -> float:
    """Return the error of the frame-to-frame changes relative to the target's own changes; 0 for a still."""
    actual, expected = changes(edited) / 255, changes(target) / 255
    return float(np.abs(actual - expected).mean() / (np.abs(expected).mean() + 1 / 255))


class ReferenceJudge(ComputedJudge):
    """A judge that computes its scores from the true edit, without a model."""

    version = f"reference-{VERSION}"

    def __init__(self, journal: Journal, protocol: JudgeProtocol, probe: Probe = "none") -> None:
        super().__init__("reference", journal, protocol, probe, concurrency=2)

    def inputs(self, case: Case) -> Sequence[Path | None]:
        """See `ComputedJudge`."""
        return (case.item.target, *self.clips(case))

    def context(self, case: Case) -> Sequence[str]:
        """See `ComputedJudge`; the category decides what counts as preserved."""
        return (case.category,)

    def measure(self, case: Case) -> Measures:
        """See `ComputedJudge`."""
        if case.item.target is None:
            raise UserError("it has no true edit: the reference judge needs a list with targets")
        source, edited, target = (_read(path) for path in (*self.clips(case), case.item.target))
        for name, clip in (("edit", edited), ("true edit", target)):
            if clip.shape != source.shape:
                shape, expected = ("x".join(map(str, c.shape[:3])) for c in (clip, source))
                raise UserError(f"its {name} is {shape} (frames x height x width), the source {expected}")
        return measure(source, edited, target, case.category == Category.STYLE)

    def result(self, measures: Measures) -> dict[str, Any]:
        """See `ComputedJudge`."""
        return {"scores": scores_of(measures)}


def _read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.stack([timed.frame for timed in reader])
