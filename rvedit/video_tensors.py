"""Frames at the edges (t h w 3, uint8) and clips inside (3 t h w, floats in [-1, 1])."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]


def to_model_range(frames: Frames) -> Tensor:
    """(t, h, w, 3) uint8 -> (3, t, h, w) float in [-1, 1]."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> c t h w").float() / 127.5 - 1


def to_frames(clip: Tensor) -> Frames:
    """(3, t, h, w) in [-1, 1] -> (t, h, w, 3) uint8."""
    levels = ((clip.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "c t h w -> t h w c").contiguous().numpy()


def resize_frames(frames: Frames, height: int, width: int) -> Frames:
    """Resize (t, h, w, 3) frames: area-like when shrinking, bicubic when growing."""
    if frames.shape[1:3] == (height, width):
        return frames
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> t c h w").float()
    resized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return rearrange(resized.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous().numpy()
