"""Time ranges: edit the frames from one moment to another, and leave the others as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import numpy as np

from rvedit.io.errors import UserError
from rvedit.io.video import Frame


@dataclass(frozen=True)
class Moment:
    """A moment of a clip: a time in seconds since its first frame, or the number of a frame, from 0."""

    value: Fraction
    is_frame: bool
    text: str

    @classmethod
    def parse(cls, name: str, text: str) -> Moment:
        """Return the moment of `7.5`, `0:07.5`, `1:02:03` or `75f`. Raises UserError that names `name`."""
        if match := re.fullmatch(r"(\d+)f", text.strip()):
            return cls(Fraction(match[1]), True, text)
        if match := re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", text.strip()):
            hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
            return cls(3600 * hours + 60 * minutes + seconds, False, text)
        raise UserError(f"`{name}` {text}: give seconds, such as 7.5 or 0:07.5, or a frame, such as 75f")


@dataclass(frozen=True)
class FrameRange:
    """The frames from `first` up to, but not including, `stop`, counted from 0."""

    first: int
    stop: int
    weights: tuple[float, ...]
    """The weight of the edit in each of these frames, for cross-fades at both ends."""


def frame_range(
    times: Sequence[Fraction], end: Fraction, start: str | None, stop: str | None, fade: float = 0.0
) -> FrameRange:
    """Return the frames that are shown at some moment from `start` until just before `stop`.

    Args:
        times: times of all frames in seconds since the first one.
        end: end of the last frame.
        start, stop: moments as `Moment.parse` reads them; None is the clip's start or end.
        fade: seconds over which the edit fades in and out, inside the range. There is no fade at the start
            and at the end of the clip.

    Raises UserError for moments in the wrong order or after the end of the clip, and for a negative fade.
    """
    if not fade >= 0:
        raise UserError(f"`fade` {fade}: give seconds, 0 or more")
    if fade and start is None and stop is None:
        raise UserError("`fade`: needs `start` or `stop`")
    texts = {"start": start, "stop": stop}
    moments = {name: Moment.parse(name, text) for name, text in texts.items() if text is not None}
    for name, moment in moments.items():
        last = len(times) if moment.is_frame else end
        if moment.value > last or (name == "start" and moment.value == last):
            raise UserError(
                f"`{name}` {moment.text}: the clip's {len(times)} frames, 0f to {len(times) - 1}f, end at "
                f"{float(end):.6g} s: give an earlier moment, or leave it out"
            )
    ends = [*times[1:], end]
    first = _first_shown(moments["start"], ends) if "start" in moments else 0
    stop_frame = _num_begun(moments["stop"], times) if "stop" in moments else len(times)
    if first >= stop_frame:
        begin = "the clip's start" if start is None else f"`start` {start}"
        raise UserError(f"{begin} and `stop` {stop}: no frame is between them: give a later `stop`")
    num_fades = (first > 0) + (stop_frame < len(times))
    length = ends[stop_frame - 1] - times[first]
    if fade * num_fades > length:
        raise UserError(
            f"`fade` {fade:g}: the range of {float(length):.6g} s is too short for {num_fades} of it: give "
            "fewer seconds"
        )
    weights = []
    for shown, gone in zip(times[first:stop_frame], ends[first:stop_frame], strict=True):
        middle = (shown + gone) / 2
        since = middle - times[first] if first else np.inf
        left = ends[stop_frame - 1] - middle if stop_frame < len(times) else np.inf
        weights.append(float(min(1, since / fade, left / fade)) if fade else 1.0)
    return FrameRange(first, stop_frame, tuple(weights))


def _first_shown(moment: Moment, ends: Sequence[Fraction]) -> int:
    """Return the number of the frame that is shown at a moment."""
    if moment.is_frame:
        return int(moment.value)
    return next(number for number, end in enumerate(ends) if end > moment.value)


def _num_begun(moment: Moment, times: Sequence[Fraction]) -> int:
    """Return the number of frames that begin before a moment."""
    return int(moment.value) if moment.is_frame else sum(time < moment.value for time in times)


def edit_range(
    frames: Iterable[Frame], edit: Callable[[Iterable[Frame]], Iterable[Frame]], part: FrameRange
) -> Iterator[Frame]:
    """Yield a clip's frames (h, w, 3), with those of the range edited; `frames` can be iterated again."""
    originals = iter(frames)
    yield from islice(originals, part.first)
    edited = edit(Slice(frames, part.first, part.stop))
    for weight, frame, original in zip(part.weights, edited, originals, strict=False):
        yield frame if weight == 1 else _mix(original, frame, weight)
    yield from originals


def _mix(original: Frame, edited: Frame, weight: float) -> Frame:
    mixed = original + np.float32(weight) * (edited.astype(np.float32) - original)
    return np.asarray(mixed.round(), np.uint8)


class Slice:
    """Part of a stream that can be iterated again; of a still mask, which has one item, all."""

    def __init__(self, items: Iterable[Any], first: int, stop: int) -> None:
        self.items, self.first, self.stop = items, first, stop

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.items)
        start = list(islice(items, 2))
        yield from start if len(start) == 1 else islice(chain(start, items), self.first, self.stop)
