"""The reference judge: exact scores of edits whose target is known, as in the playground.

The axes are functions of measures of the whole clips (rvedit/evaluation/measures.py), mapped to 1 ... 100:

- IC from the edit gain G in the changed region, 1 - MSE(edit, target) / MSE(source, target):
  1 + 99 clip(G, 0, 1). The untouched source has 1, the target 100.
- CF from the PSNR P to the target outside the changed region, in dB: 1 + 99 clip((P - 15) / 30, 0, 1). Where
  the edit changes everything, as a style does, P is that of the edges: of the horizontal and vertical
  differences of brightness, so that what is where counts and not its level.
- VQ from the instability I = mean |d(edit) - d(target)| / (mean |d(target)| + 1/255), d being the difference
  of neighbouring frames: 1 + 99 exp(-I). Flicker raises it, and missing motion. A still has 100.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judges import Case, dropped
from rvedit.evaluation.measures import edit_gain, flicker, preservation
from rvedit.evaluation.scores import Scores
from rvedit.evaluation.verdict import Verdict
from rvedit.io.chat import Journal, file_key
from rvedit.io.errors import UserError, reason_of
from rvedit.io.records import Category
from rvedit.io.video import VideoReader
from rvedit.playground.world import Frames, edit_mask

VERSION = 1
CODEC_NOISE = 24
"""Grey levels that two copies of the same pixels may differ by once they were compressed."""
LOWEST_PSNR, PSNR_RANGE = 15.0, 30.0


def measure(source: Frames, edited: Frames, target: Frames, whole: bool) -> dict[str, float | None]:
    """Gain, preservation (dB), instability, flicker; clips (t, h, w, 3) of equal shape.

    `whole`: the edit is meant to change the whole frame.
    """
    region = np.ones(source.shape[:3], bool) if whole else changed_region(source, target)
    if not region.any() or not edit_mask(source, target, 0)[region].any():
        raise UserError("source and target are the same: there is no edit to measure")
    kept = preservation(edited, target, region)
    return {
        "gain": edit_gain(source, edited, target, region),
        "preservation": edge_psnr(edited, target) if kept is None else kept,
        "instability": instability(edited, target),
        "flicker": flicker(edited),
        "target_flicker": flicker(target),
    }


def scores_of(measures: dict[str, float | None]) -> Scores:
    """The axes, from what `measure` gives."""
    gain, kept, unstable = (float(measures[name] or 0.0) for name in ("gain", "preservation", "instability"))

    def scale(share: float) -> float:
        return round(1 + 99 * min(1.0, max(0.0, share)), 2)

    return Scores(scale(gain), scale((kept - LOWEST_PSNR) / PSNR_RANGE), scale(math.exp(-unstable)))


def changed_region(source: Frames, target: Frames) -> np.ndarray:
    """Where source and target differ by more than compression: (t, h, w), with a margin of two pixels."""
    return np.asarray(
        binary_dilation(edit_mask(source, target, CODEC_NOISE), np.ones((1, 3, 3), bool), iterations=2)
    )


def edge_psnr(edited: Frames, target: Frames) -> float:
    """PSNR of the differences of brightness between neighbouring pixels, in dB, 60 at most."""
    a, b = (clip.astype(np.float32).mean(axis=-1) / 255 for clip in (edited, target))
    error = np.mean([np.square(np.diff(a, axis=axis) - np.diff(b, axis=axis)).mean() for axis in (1, 2)])
    return float(-10 * np.log10(max(error, 1e-6)))


def instability(edited: Frames, target: Frames) -> float:
    """How far the changes from frame to frame are from the target's, relative to those; 0 for a still."""
    if len(edited) < 2:
        return 0.0
    ours, theirs = (np.diff(clip.astype(np.float32), axis=0) / 255 for clip in (edited, target))
    return float(np.abs(ours - theirs).mean() / (np.abs(theirs).mean() + 1 / 255))


class ReferenceJudge:
    """Measures; asks nobody."""

    name = "reference"
    concurrency = 2

    def __init__(self, journal: Journal, frames: FrameStore, probe: str = "none") -> None:
        self._journal, self._frames, self._probe = journal, frames, probe

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Judge`."""
        return 0, 0

    def known(self, case: Case) -> Verdict | None:
        """See `Judge`."""
        key = self._key(case)
        value = self._journal.get(key) if key else None
        return self._verdict(case, value, from_cache=True) if value else None

    def expected_tokens(self, case: Case, width: int, height: int) -> tuple[int, int]:
        """See `Judge`."""
        return 0, 0

    async def check(self) -> None:
        """See `Judge`."""
        self._frames.open()

    async def score(self, case: Case) -> Verdict:
        """See `Judge`; a repeat finds what was measured before."""
        if verdict := self.known(case):
            return replace(verdict, from_cache=False)
        try:
            measures = await asyncio.to_thread(self._measure, case)
            for clip in case.shown(self._probe):  # for the report
                await asyncio.to_thread(self._frames.read, clip)
        except Exception as error:  # whatever one clip does, the others are still judged
            return dropped(case, self.name, self._probe, reason_of(error))
        if key := self._key(case):
            self._journal.put(key, measures)
        return self._verdict(case, measures)

    async def close(self) -> None:
        """See `Judge`."""
        self._frames.close()

    def _measure(self, case: Case) -> dict[str, float | None]:
        if case.item.target is None:
            raise UserError("its true edit is not known: the reference judge needs a list with targets")
        source, edited, target = (_read(path) for path in (*case.shown(self._probe), case.item.target))
        for name, clip in (("edit", edited), ("true edit", target)):
            if clip.shape != source.shape:
                there, wanted = ("x".join(map(str, c.shape[:3])) for c in (clip, source))
                raise UserError(f"its {name} is {there} (frames x height x width), the source {wanted}")
        return measure(source, edited, target, case.category == Category.STYLE.value)

    def _key(self, case: Case) -> str | None:
        """Of what the measures are of; none where a clip is not there."""
        target = case.item.target
        keys = [target and file_key("clip", target)]
        keys += [file_key("clip", clip) for clip in case.shown(self._probe)]
        if None in keys:
            return None
        digest = hashlib.sha256(json.dumps([case.category, keys]).encode())
        return f"reference:{VERSION}:{digest.hexdigest()}"

    def _verdict(self, case: Case, measures: dict[str, float | None], from_cache: bool = False) -> Verdict:
        source, edited = (self._frames.digests(clip) for clip in case.shown(self._probe))
        return replace(
            dropped(case, self.name, self._probe, None),
            scores=scores_of(measures),
            measures=measures,
            model=f"reference-{VERSION}",
            from_cache=from_cache,
            reasoning=", ".join(f"{k} {v:.3g}" for k, v in measures.items() if v is not None),
            request=self._key(case) or "",
            source_frames=source,
            edited_frames=edited,
        )


def _read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.stack([timed.frame for timed in reader])
