"""Frames and reference images as the multimodal LLM gets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rvedit.compat import smart_resize
from rvedit.io.frames import Frames, pillow_resize, resize_frames

IMAGE_TOKENS = (4, 16_384)
"""Minimum and maximum tokens of an image in Qwen's tools."""


@dataclass(frozen=True)
class MLLMFrameProcessor:
    """Samples and resizes the frames of a clip for the multimodal LLM."""

    max_frames: int
    grid: int
    """Side of one token in pixels; heights and widths are multiples of it."""
    max_pixels: int
    """Maximum pixels of each frame."""
    min_pixels: int = 0
    coarse_grid: int = 0
    """First resize with Pillow to multiples of this many pixels; 0: do not."""
    whole_stills: bool = False
    """Keep a single frame near its own size."""
    max_image_tokens: int = 0
    """Maximum tokens of a reference image."""

    def sample(self, frames: Frames) -> Frames:
        """Return at most `max_frames` frames, evenly spaced from the first to the last."""
        if len(frames) <= self.max_frames:
            return frames
        return frames[np.round(np.linspace(0, len(frames) - 1, self.max_frames)).astype(int)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) in pixels of the LLM's frames for a clip of this size."""
        if self.coarse_grid:
            height, width = self._coarse_size(height, width)
        return smart_resize(height, width, self.grid, max(self.min_pixels, self.grid**2), self.max_pixels)

    def __call__(self, clip: Frames, has_reference: bool = False) -> Frames:
        """Return the frames for the LLM at their size; with a reference image, a still is a video too."""
        height, width = clip.shape[1:3]
        if self.whole_stills and len(clip) == 1 and not has_reference:
            return self._image(clip, IMAGE_TOKENS[1])
        size = self.size(height, width)
        clip = self.sample(clip)
        if self.coarse_grid:
            clip = pillow_resize(clip, *self._coarse_size(height, width), Image.Resampling.BICUBIC)
        return resize_frames(clip, *size)

    def reference_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
        """Return a reference image for the LLM, near its own size."""
        return self._image(image[None], self.max_image_tokens)[0]

    def _image(self, image: Frames, max_tokens: int) -> Frames:
        least, most = (tokens * self.grid**2 for tokens in (IMAGE_TOKENS[0], max_tokens))
        size = smart_resize(image.shape[1], image.shape[2], self.grid, least, most)
        return pillow_resize(image, *size, Image.Resampling.BICUBIC)

    def _coarse_size(self, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self.coarse_grid, 4 * self.coarse_grid**2, self.max_pixels)
