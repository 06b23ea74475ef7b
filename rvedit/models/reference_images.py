"""Reference images: pictures of what an instruction's "this" is, one for each clip.

A model that reads them gets each image twice, as Kiwi-Edit does: the multimodal LLM sees it after the
instruction, and the transformer gets its latents as one more frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from rvedit.io.frames import as_frames

Picture = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class ReferenceImages:
    """The reference images of a batch of clips, one for each, of one shape for the multimodal LLM."""

    frames: Sequence[Picture]
    """From `MLLMFrameProcessor.reference_image`."""
    latents: Float[Tensor, "b c 1 y x"]
    """Clean, normalized latents of the images from `pad_image`, at the clips' size."""


def as_pictures(images: Any, count: int) -> list[Picture]:
    """Return one picture, or one for each of `count` clips, in any usual form, as arrays (h, w, 3).

    Raises ValueError for another number of pictures, and for anything else.
    """
    given = list(images) if isinstance(images, list | tuple) else [images] * count
    pictures = [as_frames([image])[0, 0] for image in given]
    if len(pictures) != count:
        raise ValueError(
            f"`reference_image` has {len(pictures)} pictures for {count} clips: give one for each"
        )
    return pictures


def shrink_to_fit(image: Picture, height: int, width: int) -> Picture:
    """Return an image that is at most as high and wide as this, without enlarging it."""
    small = Image.fromarray(image)
    small.thumbnail((width, height), Image.Resampling.BICUBIC)
    return np.array(small)


def pad_image(image: Picture, height: int, width: int, scale: float = 1.0) -> Picture:
    """Return an image that fits `scale` of a height and width, centered on white."""
    padded = ImageOps.pad(Image.fromarray(image), (width, height), color="white")
    if scale < 1:
        inner = padded.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        padded = Image.new("RGB", (width, height), "white")
        padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return np.array(padded)  # a copy, which is writable
