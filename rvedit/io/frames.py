"""Convert between frames (t h w 3, uint8) and the model's clips (3 t h w, floats in [-1, 1])."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rvedit.io.video.clip import Frames

__all__ = [
    "Frames",
    "Picture",
    "as_frames",
    "batch_to_model_range",
    "pillow_resize",
    "resize_frames",
    "to_frames",
    "to_model_range",
]

Picture = UInt8[np.ndarray, "_ _ 3"]
"""One image of any size."""


def as_frames(video: Any) -> Frames:
    """Return clips in any usual form as uint8 (b, t, h, w, 3).

    A clip is a list of PIL images or arrays (h, w, 3), an array (t, h, w, 3) or a tensor (t, 3, h, w): uint8,
    or floats in [0, 1]. Several clips are a list of those, or one array or tensor with a leading axis.

    Raises ValueError for anything else, and for clips of unequal size or length.
    """
    if isinstance(video, list | tuple):
        if not video:
            raise ValueError("video has no frames")
        parts = [_as_array(part) for part in video]
        if len({part.shape for part in parts}) > 1:
            raise ValueError("video has frames or clips of unequal size or length: pass clips one by one")
        array = np.stack(parts)
    else:
        array = _as_array(video)
    if array.ndim == 4:
        array = array[None]
    if array.ndim != 5 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"video has shape {array.shape}: give RGB frames as (t, h, w, 3) arrays, (t, 3, h, w) tensors "
            "or PIL images"
        )
    return array


def _as_array(part: Any) -> Frames:
    """Return an image, an array or a tensor as uint8 with channels last."""
    if isinstance(part, Image.Image):
        return np.asarray(part.convert("RGB"))
    if isinstance(part, list | tuple):
        return np.stack([_as_array(frame) for frame in part])
    if isinstance(part, Tensor):
        part = part.detach().cpu().movedim(-3, -1) if part.ndim >= 3 else part.detach().cpu()
        part = part.numpy() if part.dtype == torch.uint8 else part.float().numpy()
    if not isinstance(part, np.ndarray):
        raise ValueError(f"video holds a {type(part).__name__}: give PIL images, arrays or tensors")
    if part.dtype == np.uint8:
        return part
    if not np.issubdtype(part.dtype, np.floating):
        raise ValueError(f"video has dtype {part.dtype}: give uint8, or floats in [0, 1]")
    if part.size and not (part.min() >= 0 and part.max() <= 1):
        raise ValueError(f"video has values from {part.min():.3g} to {part.max():.3g}: give floats in [0, 1]")
    return (part * 255).round().astype(np.uint8)


def to_model_range(frames: Frames, device: torch.device | None = None) -> Tensor:
    """Return (t, h, w, 3) uint8 frames as (3, t, h, w) floats in [-1, 1], on a device."""
    levels = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return rearrange(levels, "t h w c -> c t h w").float() / 127.5 - 1


def batch_to_model_range(clips: Tensor) -> Tensor:
    """Return uint8 clips (b, t, h, w, 3) as (b, 3, t, h, w) floats in [-1, 1], on their device."""
    return rearrange(clips, "b t h w c -> b c t h w").float() / 127.5 - 1


def to_frames(clip: Tensor) -> Frames:
    """Return a clip (3, t, h, w) in [-1, 1] as (t, h, w, 3) uint8 frames."""
    levels = ((clip.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "c t h w -> t h w c").contiguous().numpy()


def resize_frames(frames: Frames, height: int, width: int) -> Frames:
    """Resize (t, h, w, 3) frames bicubically, with antialiasing when shrinking."""
    if frames.shape[1:3] == (height, width):
        return frames
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> t c h w").float()
    resized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return rearrange(resized.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous().numpy()


def pillow_resize(frames: Frames, height: int, width: int, resample: Image.Resampling) -> Frames:
    """Resize (t, h, w, 3) frames with a filter of Pillow."""
    images = (Image.fromarray(frame).resize((width, height), resample) for frame in frames)
    return np.stack([np.asarray(image) for image in images])
