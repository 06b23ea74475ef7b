"""Keep what the model left alone: the edit is laid over the source where the edit changed something.

The model's picture of the source, encoded and decoded, is soft as its edit is; what differs between the two
is the edit itself. There the edit shows, elsewhere the source's own pixels, bit for bit, at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.video_tensors import Frames


@dataclass(frozen=True)
class MaskSettings:
    """When a difference is an edit, and how wide its border is."""

    low: float = 0.12
    """Differences below are the model's own noise; of the range of a channel, 0 to 1."""
    high: float = 0.25
    """Differences above are the edit."""
    smoothing: float = 1 / 128
    """Radius over which differences are averaged, of the frame's short side."""
    border: float = 1 / 128
    """How far the edit shows around what it changed, of the short side; it fades over the same length."""
    whole: float = 0.35
    """An edit of more than this share of a window's pixels, such as a style, is kept as it is."""


def change_mask(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], settings: MaskSettings
) -> Float[Tensor, "t h w"]:
    """Where a window was edited: 0 the source, 1 the edit; clips in [-1, 1].

    Exactly 0 away from every change. Frames see their neighbours' changes, so that the mask does not flicker.
    """
    difference = (edited - reconstructed).abs().amax(dim=0)[:, None] / 2
    short = min(difference.shape[-2:])
    blurred = _average(difference, round(short * settings.smoothing))
    change = ((blurred - settings.low) / (settings.high - settings.low)).clamp(0, 1)
    # A change in the frame before or after counts here, too: maxima over three frames.
    change = rearrange(change, "t 1 h w -> 1 1 t h w")
    change = rearrange(F.max_pool3d(change, (3, 1, 1), 1, (1, 0, 0)), "1 1 t h w -> t 1 h w")
    radius = max(1, round(short * settings.border))
    grown = F.max_pool2d(change, 2 * radius + 1, 1, radius)
    return _average(grown, radius)[:, 0]


def is_whole(mask: Float[Tensor, "t h w"], settings: MaskSettings) -> bool:
    """Whether an edit is of the whole frame."""
    return bool((mask > 0.5).float().mean() > settings.whole)


def composite(source: Frames, edited: Frames, mask: Float[Tensor, "h w"]) -> Frames:
    """A frame (h, w, 3) of source and edit, both at the source's size; the mask is of any size."""
    size = source.shape[:2]
    weight = F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    share = weight.clamp(0, 1).cpu().numpy()[..., None]
    mixed = source + share * (edited.astype(np.float32) - source)
    return np.where(share > 0, np.round(mixed), source).astype(np.uint8)


def _average(x: Float[Tensor, "t 1 h w"], radius: int) -> Float[Tensor, "t 1 h w"]:
    if radius < 1:
        return x
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
