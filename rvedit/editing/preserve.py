"""`--preserve`: the edit is laid over the source where the edit changed something.

The VAE's reconstruction of the source is as soft as the edit is; what differs between the two is the edit
itself. There the edit shows, elsewhere the source's own pixels, bit for bit, at full resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.io.frames import Frames, to_model_range


@dataclass(frozen=True)
class MaskSettings:
    """When a difference, of a channel's range of 1, is an edit; how wide its border is."""

    low: float = 0.12
    """Those below are the model's own noise."""
    high: float = 0.25
    """Those above are the edit; between, it shows by halves."""
    radius: float = 1 / 128
    """Over which differences are averaged, and then the mask, so that it fades out; of the short side."""
    faint: float = 0.05
    """What an edit of the whole frame, such as a style, changes at the least."""
    whole: float = 0.5
    """An edit that changes more than this share of a window's pixels faintly is kept as it is."""


def is_whole(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], settings: MaskSettings
) -> bool:
    """Whether an edit is of the whole frame."""
    difference = _difference(edited, reconstructed, settings)
    return bool((difference > settings.faint).float().mean() > settings.whole)


def changes(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], settings: MaskSettings
) -> Float[Tensor, "t h w"]:
    """How surely each frame was edited where, by itself: 0 the source, 1 the edit; clips in [-1, 1]."""
    difference = _difference(edited, reconstructed, settings)
    return ((difference - settings.low) / (settings.high - settings.low)).clamp(0, 1)[:, 0]


REACH = 2
"""Frames before and after that decide about a frame's mask."""


def soften(change: Float[Tensor, "t h w"], settings: MaskSettings) -> Float[Tensor, "t h w"]:
    """The mask of successive frames: soft borders in space and in time, and 0 away from every change."""
    # A change in the frame before or after counts here, too, and fades over some more: maxima over three
    # frames, then means.
    change = F.max_pool3d(rearrange(change, "t h w -> 1 1 t h w"), (3, 1, 1), 1, (1, 0, 0))
    change = F.avg_pool3d(change, (3, 1, 1), 1, (1, 0, 0), count_include_pad=False)
    change = rearrange(change, "1 1 t h w -> t 1 h w")
    return _average(change, _pixels(change, settings))[:, 0]


def _difference(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], settings: MaskSettings
) -> Float[Tensor, "t 1 h w"]:
    """Of the channel that differs most, mean over a neighbourhood."""
    difference = (edited - reconstructed).abs().amax(dim=0)[:, None] / 2
    return _average(difference, _pixels(difference, settings))


def _pixels(frames: Tensor, settings: MaskSettings) -> int:
    return max(1, round(min(frames.shape[-2:]) * settings.radius))


class PreserveMasks:
    """The mask (h, w) of each frame of a stream of edits: where the edit shows; none: everywhere.

    A frame waits for the next two, as a change that begins there fades in before.
    """

    def __init__(self, settings: MaskSettings | None = None) -> None:
        self.settings = settings or MaskSettings()
        self.whole: bool | None = None  # is the edit of the whole frame? As the first window says, for all
        self.waiting = 0
        self.changes: Tensor | None = None  # of those that wait, and of REACH frames before them

    def add(self, edited: Frames, reconstructed: Frames) -> Iterator[Tensor | None]:
        """Take the next frames (t, h, w, 3), and the VAE's reconstruction of their source."""
        pictures = to_model_range(edited), to_model_range(reconstructed)
        if self.whole is None:
            self.whole = is_whole(*pictures, self.settings)
        if self.whole:
            yield from [None] * len(edited)
            return
        new = changes(*pictures, self.settings)
        self.changes = new if self.changes is None else torch.cat([self.changes, new])
        self.waiting += len(edited)
        yield from self._give(self.waiting - REACH)

    def rest(self) -> Iterator[Tensor | None]:
        """Give the masks of the frames that waited, when no more come."""
        return self._give(self.waiting)

    def _give(self, count: int) -> Iterator[Tensor | None]:
        if self.changes is None or count <= 0:
            return
        before = len(self.changes) - self.waiting
        masks = soften(self.changes, self.settings)[before : before + count]
        self.changes = self.changes[max(0, before + count - REACH) :]
        self.waiting -= count
        yield from masks


def composite(source: Frames, edited: Frames, mask: Float[Tensor, "h w"]) -> Frames:
    """A frame (h, w, 3) of source and edit, both at the source's size; the mask is of any size."""
    size = source.shape[:2]
    weight = F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    share = weight.clamp(0, 1).cpu().numpy()[..., None]
    mixed = source + share * (edited.astype(np.float32) - source)
    return np.where(share > 0, np.round(mixed), source).astype(np.uint8)


def _average(x: Float[Tensor, "t 1 h w"], radius: int) -> Float[Tensor, "t 1 h w"]:
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
