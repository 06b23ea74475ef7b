"""Reference images: pictures of a subject or background that an instruction refers to, one for each clip.

A model that reads them gets each image twice, as Kiwi-Edit does: the multimodal LLM sees it after the
instruction, and the transformer gets its latents as one more frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from rvedit.io.clips import MAX_ASPECT, is_too_narrow
from rvedit.io.frames import Picture, as_frames


@dataclass(frozen=True)
class ReferenceImages:
    """The reference images of a batch of clips, one for each.

    The pictures for the multimodal LLM have one shape, near their own; it is not that of the latents.
    """

    frames: Sequence[Picture]
    """From `MLLMFrameProcessor.reference_image`."""
    latents: Float[Tensor, "b c 1 y x"]
    """Clean, normalized latents of the images from `pad_image`, at the clips' size."""


def as_pictures(images: Any, count: int) -> list[Picture]:
    """Return one picture, or one for each of `count` clips, in any usual form, as arrays (h, w, 3).

    Raises ValueError for another number of pictures, for extreme shapes, and for anything else.
    """
    is_several = isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4
    given = list(images) if is_several else [images] * count
    try:
        pictures = [as_frames([image])[0, 0] for image in given]
    except ValueError as error:
        raise ValueError(f"`reference_image`: {str(error).replace('video', 'the picture')}") from None
    for picture in pictures:
        check_shape(picture)
    if len(pictures) != count:
        raise ValueError(
            f"`reference_image` has {len(pictures)} pictures for {count} clips: give one for each"
        )
    return pictures


def check_shape(image: Picture) -> None:
    """Raise ValueError for a picture that is more than 100 times as wide as high, or the other way round."""
    height, width = image.shape[:2]
    if is_too_narrow(height, width):
        raise ValueError(
            f"a reference image of {width}x{height}: crop it to an aspect ratio of {MAX_ASPECT} or less"
        )


def shrink_to_fit(image: Picture, height: int, width: int) -> Picture:
    """Return an image that is at most as high and wide as this, in pixels, without enlarging it."""
    small = Image.fromarray(image)
    small.thumbnail((width, height), Image.Resampling.BICUBIC)
    return np.array(small)


def pad_image(image: Picture, height: int, width: int, scale: float = 1.0) -> Picture:
    """Return an image that fits `scale` (0 to 1) of a height and width in pixels, centered on white."""
    padded = ImageOps.pad(Image.fromarray(image), (width, height), color="white")
    if scale < 1:
        inner = padded.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        padded = Image.new("RGB", (width, height), "white")
        padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return np.array(padded)  # a copy, which is writable
