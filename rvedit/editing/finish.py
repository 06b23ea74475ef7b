"""Turn edits at the model's size into frames of the source's size: colors, detail, preservation, masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat, tee
from typing import TypeVar

import torch
from torch import Tensor

from rvedit.editing.colors import ColorMatch
from rvedit.editing.config import EditConfig
from rvedit.editing.detail import DetailTransfer, apply_map, has_own_texture
from rvedit.editing.mask import Mask, keep_last, soft_weights
from rvedit.editing.preserve import PreserveMasks, composite
from rvedit.editing.windows import EditedFrames
from rvedit.io.frames import Frames, resize_frames

T = TypeVar("T")


def finish(
    windows: Iterable[EditedFrames],
    originals: Iterable[Frames],
    config: EditConfig,
    cell: int,
    device: torch.device | str = "cpu",
    masks: Iterable[Mask] | None = None,
) -> Iterator[Frames]:
    """Yield an output frame for each source frame (h, w, 3) in `originals`, of the same size.

    Windows are held in memory at the model's size; originals are read one at a time, when they are needed.
    `cell` and `device` are those of `DetailTransfer`. Nothing changes outside
    `masks`, one per frame. Reads `detail` and `preserve` of the config.
    """
    if config.needs_reconstruction:
        windows = map(ColorMatch().apply, windows)
    changed: Iterable[Tensor | None] = repeat(None)
    if config.preserve:
        windows, again = tee(windows)
        changed = _masks(again)
    allowed = repeat(None) if masks is None else map(keep_last(soft_weights), masks)
    for render, original, *weights in zip(
        _renders(windows, config, cell, device), originals, changed, allowed, strict=False
    ):
        frame = render(original)
        for weight in weights:
            frame = frame if weight is None else composite(original, frame, weight)
        yield frame


def read_twice(frames: Iterable[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Return two iterators over the frames.

    Frames of an iterator, which can be read only once, are kept in memory until the second one reads them.
    """
    first = iter(frames)
    if first is frames:
        first, second = tee(first)
        return first, second
    return first, iter(frames)


def _masks(windows: Iterable[EditedFrames]) -> Iterator[Tensor | None]:
    """Yield the mask of each frame, as soon as the frames that it depends on are there."""
    masks = PreserveMasks()
    for window in windows:
        assert window.reconstructed is not None
        yield from masks.add(window.edited, window.reconstructed)
    yield from masks.flush()


def _renders(
    windows: Iterable[EditedFrames], config: EditConfig, cell: int, device: torch.device | str
) -> Iterator[Callable[[Frames], Frames]]:
    """Yield for each frame a function from the source frame to the output frame.

    Color maps are large, so each is computed when it is needed. The first window decides whether detail is
    transferred.
    """
    transfer: DetailTransfer | None = None
    for number, window in enumerate(windows):
        if number == 0 and _transfers_detail(window, config, cell):
            transfer = DetailTransfer(cell, 1.0 if config.detail == "auto" else config.detail, device)
        if transfer is None:
            yield from (partial(_resize, frame) for frame in window.edited)
        else:
            assert window.reconstructed is not None
            maps = transfer.add(window.edited, window.reconstructed, window.source, window.masks)
            yield from (partial(apply_map, color_map) for color_map in maps)
    if transfer is not None:
        yield from (partial(apply_map, color_map) for color_map in transfer.flush())


def _transfers_detail(window: EditedFrames, config: EditConfig, cell: int) -> bool:
    if config.detail != "auto":
        return config.detail > 0
    assert window.reconstructed is not None
    return not has_own_texture(window.edited, window.reconstructed, cell, window.masks)


def _resize(edited: Frames, original: Frames) -> Frames:
    return resize_frames(edited[None], *original.shape[:2])[0]
