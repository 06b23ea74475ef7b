"""Regions: a box, or words that a segmentation model looks for, as masks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvedit.editing.time_range import FrameRange, Slice
from rvedit.io.errors import UserError
from rvedit.io.video import FileFrames
from rvedit.io.video.clip import Frames


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width and height, each in pixels, or as a fraction of the frame's side."""

    sides: tuple[float, float, float, float]
    is_fraction: tuple[bool, bool, bool, bool]
    text: str
    """The region as it was given."""

    @classmethod
    def parse(cls, text: str) -> Box | None:
        """Return the box that `10%,20%,40%,50%` or `64,32,200,100` means, or None for words.

        Raises UserError for numbers that are no box.
        """
        parts = [part.strip() for part in text.split(",")]
        matches = [re.fullmatch(r"(-?\d+(?:\.\d*)?|-?\.\d+)(%?)", part) for part in parts]
        if not any(matches) and re.search(r"[^\d\s.,;:x%*/-]", text.replace("px", "")):
            return None
        if len(parts) != 4 or not all(matches):
            raise UserError(
                f"`region` {text}: give a box as left,top,width,height, such as 10%,20%,40%,50% or in pixels"
            )
        numbers = [(float(match[1]), bool(match[2])) for match in matches if match]
        sides = tuple(number / 100 if is_percent else number for number, is_percent in numbers)
        return cls(sides, tuple(is_percent for _, is_percent in numbers), text)  # type: ignore[arg-type]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return the mask (h, w) of a frame. Raises UserError if the box is empty or leaves the frame."""
        scales = (width, height, width, height)
        left, top, columns, rows = (
            side * scale if is_fraction else side
            for side, is_fraction, scale in zip(self.sides, self.is_fraction, scales, strict=True)
        )
        edges = [round(edge) for edge in (left, top, left + columns, top + rows)]
        is_empty = edges[0] >= edges[2] or edges[1] >= edges[3]
        is_inside = 0 <= edges[0] <= edges[2] <= width and 0 <= edges[1] <= edges[3] <= height
        if is_empty or not is_inside:
            fault = "is empty in" if is_empty else "is not inside"
            raise UserError(
                f"`region` {self.text}: {fault} the frame of {width}x{height} pixels: give "
                "left,top,width,height, such as 10%,20%,40%,50%"
            )
        mask = np.zeros((height, width), bool)
        mask[edges[1] : edges[3], edges[0] : edges[2]] = True
        return mask

    def __str__(self) -> str:
        return self.text


class StoredMasks:
    """Masks (h, w) of a clip, compressed: some kilobytes per frame.

    The first `num_empty` masks are False everywhere.
    """

    def __init__(self, num_empty: int = 0) -> None:
        self.num_empty = num_empty
        self._packed: list[bytes] = []
        self._shape = (0, 0)
        self.num_pixels = 0
        """Number of pixels that are True, over all masks."""

    def append(self, mask: NDArray[np.bool_]) -> None:
        """Append the mask of the next frame."""
        self._shape = (mask.shape[0], mask.shape[1])
        self.num_pixels += int(mask.sum())
        self._packed.append(zlib.compress(np.packbits(mask).tobytes(), 1))

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        size = self._shape[0] * self._shape[1]
        yield from repeat(np.zeros(self._shape, bool), self.num_empty)
        for packed in self._packed:
            bits = np.frombuffer(zlib.decompress(packed), np.uint8)
            yield np.unpackbits(bits, count=size).astype(bool).reshape(self._shape)


def as_masks(mask: Any) -> Iterable[Any]:
    """Return the frames of a mask in any form that `EditConfig.mask` may have; a still has one."""
    if isinstance(mask, str):
        mask = Box.parse(mask) or Path(mask)
    if isinstance(mask, Path):
        return FileFrames(mask)
    if isinstance(mask, Iterator):
        return map(np.array, mask)  # copies, as it may fill one array again and again
    is_still = isinstance(mask, Box) or not isinstance(mask, Iterable) or getattr(mask, "ndim", 3) == 2
    return [mask] if is_still else mask


def read_regions(masks: Sequence[Path], regions: Sequence[str], count: int) -> list[Path | Box | str | None]:
    """Return the mask file, box or words of each of `count` instructions; None: it may change everything.

    Raises UserError unless there is none, one, or one for each.
    """
    if masks and regions:
        raise UserError("`mask` and `region`: give one of them")
    name = "mask" if masks else "region"
    places: list[Path | Box | str | None] = [*masks, *map(_read_region, regions)]
    if len(places) not in (0, 1, count):
        given, wanted = (f"{n} time{'s' * (n > 1)}" for n in (len(places), count))
        raise UserError(
            f"`{name}`: given {given}, but there {'are' if count > 1 else 'is'} {count} "
            f"instruction{'s' * (count > 1)}: give it once{f', or {wanted}' * (count > 1)}"
        )
    return places if len(places) == count else (places or [None]) * count


def _read_region(text: str) -> Box | str:
    if not text.strip():
        raise UserError('`region` is empty: give words, such as "the dog", or a box, such as 10%,20%,40%,50%')
    return Box.parse(text) or text.strip()


def find_region(
    video: str | Path | Iterable[Frames],
    words: str,
    segmenter: Any = None,
    part: FrameRange | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> StoredMasks:
    """Return a mask for each frame of a clip: True where it shows what the words name.

    Args:
        video: a path, or frames (h, w, 3) uint8.
        words: such as "the dog".
        segmenter: a name for `rvedit.editing.segmenters.load_segmenter`, or what it returns; by default its
            default model.
        part: the frames to search; the masks of others are False.
        on_progress: called with the number of frames searched.

    Raises UserError if nothing is found in any frame.
    """
    if not isinstance(_read_region(words), str):
        raise UserError(f"`words` {words}: is a box: give it as the mask itself")
    if segmenter is None or isinstance(segmenter, str):
        from rvedit.editing.segmenters import DEFAULT_SEGMENTER, load_segmenter

        segmenter = load_segmenter(segmenter or DEFAULT_SEGMENTER)
    frames: Iterable[Frames] = FileFrames(video) if isinstance(video, str | Path) else video
    if part is not None:
        frames = Slice(frames, part.first, part.stop)
    masks = StoredMasks(part.first if part else 0)
    for mask in segmenter.masks(frames, words):
        masks.append(mask)
        on_progress(len(masks))
    if not masks.num_pixels:
        raise UserError(f'`region` "{words}": not found in the clip: use other words, or a box')
    return masks
