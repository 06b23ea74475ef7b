"""From a model's edits, at its own size, to frames of the source's size: what of the source shows where."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rvedit.editing.config import EditConfig
from rvedit.editing.detail import DetailTransfer, apply_map, has_own_texture
from rvedit.editing.preserve import PreserveMasks, composite
from rvedit.io.frames import Frames, resize_frames

T = TypeVar("T")


@dataclass(frozen=True)
class EditedFrames:
    """What a model made of some consecutive frames; all (t, h, w, 3) at the model's size."""

    edited: Frames
    reconstructed: Frames | None
    """The source after the VAE's encoder and decoder; none where the settings do not read it."""
    source: Frames


def finish(
    windows: Iterable[EditedFrames],
    originals: Iterable[Frames],
    config: EditConfig,
    cell: int,
    device: torch.device | str = "cpu",
) -> Iterator[Frames]:
    """Give a frame of the source's size for each of `originals` (h, w, 3), the source's frames.

    A window's frames are held at the model's size; originals are read one at a time, as they are needed.
    `cell` and `device` are those of `DetailTransfer`. Of the config: `detail`, `preserve`.
    """
    source = iter(originals)
    finisher = _Finisher(config, cell, device)
    for window in windows:
        for render in finisher.add(window):
            yield render(next(source))
    for render in finisher.rest():
        yield render(next(source))


def read_twice(frames: Iterable[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Give two passes over the frames. What can be read only once, such as a generator, is kept in memory
    between the first pass and the second.
    """
    first = iter(frames)
    if first is frames:
        one, other = tee(first)
        return one, other
    return first, iter(frames)


_Render = Callable[[Frames], Frames]
"""From a frame of the source to the frame of the output."""


class _Finisher:
    def __init__(self, config: EditConfig, cell: int, device: torch.device | str) -> None:
        self.config, self.cell, self.device = config, cell, device
        self.transfer: DetailTransfer | None = None
        self.is_first = True
        self.masks = PreserveMasks() if config.preserve else None
        self.renders: deque[_Render] = deque()  # of frames whose mask is not known yet
        self.ready: deque[Tensor | None] = deque()  # masks of frames whose colours are not known yet

    def add(self, window: EditedFrames) -> Iterator[_Render]:
        edited, reconstructed = window.edited, window.reconstructed
        if self.is_first:
            self.transfer, self.is_first = self._choose(window), False
        if self.masks is None:
            self.ready.extend([None] * len(edited))
        else:
            assert reconstructed is not None
            self.ready.extend(self.masks.add(edited, reconstructed))
        if self.transfer is None:
            yield from self._pairs(partial(_resized, frame) for frame in edited)
        else:
            assert reconstructed is not None
            maps = self.transfer.add(edited, reconstructed, window.source)
            yield from self._pairs(partial(apply_map, color_map) for color_map in maps)

    def rest(self) -> Iterator[_Render]:
        if self.masks is not None:
            self.ready.extend(self.masks.rest())
        maps = () if self.transfer is None else self.transfer.rest()
        yield from self._pairs(partial(apply_map, color_map) for color_map in maps)

    def _choose(self, window: EditedFrames) -> DetailTransfer | None:
        """Whether and how much detail is transferred: as the first window says, for all."""
        strength = 1.0 if self.config.detail == "auto" else self.config.detail
        if not strength:
            return None
        assert window.reconstructed is not None
        is_auto = self.config.detail == "auto"
        if is_auto and has_own_texture(window.edited, window.reconstructed, self.cell):
            return None
        return DetailTransfer(self.cell, strength, device=self.device)

    def _pairs(self, renders: Iterable[_Render]) -> Iterator[_Render]:
        """Those whose mask is known. Colour maps are large: each is made when it is needed, and not held."""
        yield from self._waiting_pairs()
        for render in renders:
            self.renders.append(render)
            yield from self._waiting_pairs()

    def _waiting_pairs(self) -> Iterator[_Render]:
        while self.renders and self.ready:
            render, mask = self.renders.popleft(), self.ready.popleft()
            yield render if mask is None else partial(_composed, render, mask)


def _resized(edited: Frames, original: Frames) -> Frames:
    return resize_frames(edited[None], *original.shape[:2])[0]


def _composed(render: _Render, mask: Float[Tensor, "h w"], original: Frames) -> Frames:
    return composite(original, render(original), mask)
