"""Keep what the model left alone: the edit is laid over the source where the edit changed something.

The model's picture of the source, encoded and decoded, is soft as its edit is; what differs between the two
is the edit itself. There the edit shows, elsewhere the source's own pixels, bit for bit, at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.video_tensors import Frames


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


def change_mask(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], settings: MaskSettings
) -> Float[Tensor, "t h w"]:
    """Where a window was edited: 0 the source, 1 the edit; clips in [-1, 1].

    Exactly 0 away from every change, and 1 everywhere for an edit of the whole frame. Frames see their
    neighbours' changes, so that the mask does not flicker.
    """
    difference = (edited - reconstructed).abs().amax(dim=0)[:, None] / 2
    radius = max(1, round(min(difference.shape[-2:]) * settings.radius))
    difference = _average(difference, radius)
    if (difference > settings.faint).float().mean() > settings.whole:
        return torch.ones_like(difference[:, 0])
    change = ((difference - settings.low) / (settings.high - settings.low)).clamp(0, 1)
    # A change in the frame before or after counts here, too: maxima over three frames.
    change = rearrange(change, "t 1 h w -> 1 1 t h w")
    change = rearrange(F.max_pool3d(change, (3, 1, 1), 1, (1, 0, 0)), "1 1 t h w -> t 1 h w")
    return _average(change, radius)[:, 0]


def composite(source: Frames, edited: Frames, mask: Float[Tensor, "h w"]) -> Frames:
    """A frame (h, w, 3) of source and edit, both at the source's size; the mask is of any size."""
    size = source.shape[:2]
    weight = F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    share = weight.clamp(0, 1).cpu().numpy()[..., None]
    mixed = source + share * (edited.astype(np.float32) - source)
    return np.where(share > 0, np.round(mixed), source).astype(np.uint8)


def _average(x: Float[Tensor, "t 1 h w"], radius: int) -> Float[Tensor, "t 1 h w"]:
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
