"""The sizes in which a pipeline gives frames to the multimodal LLM and to the VAE."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from rvedit.compat import smart_resize
from rvedit.io.frames import Frames, pillow_resize, resize_frames

_MAX_ASPECT = 100
_REDUCED_GRID = 16


@dataclass(frozen=True)
class FrameSizes:
    """Rules for the size of frames, which have multiples of `grid` for height and width in the VAE.

    By default, the multimodal LLM and the VAE get the nearest size. With `round_up`, as in Kiwi-Edit's
    pipeline, frames above `max_area` are reduced to multiples of 16; the multimodal LLM gets these, and the
    VAE gets them enlarged to multiples of the grid.
    """

    grid: int
    min_area: int
    max_area: int
    round_up: bool

    def mllm_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) for the multimodal LLM; it keeps the aspect ratio, up to 100."""
        if max(height, width) / min(height, width) > _MAX_ASPECT:
            height, width = (100, 10_000) if width > height else (10_000, 100)
        if not self.round_up:
            return self._nearest(height, width)
        scale = (self.max_area / (height * width)) ** 0.5
        if scale >= 1:
            return height, width
        rows, columns = (int(side * scale) // _REDUCED_GRID * _REDUCED_GRID for side in (height, width))
        return rows, columns

    def enlarged_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) for the VAE of frames of `mllm_size`."""
        if not self.round_up:
            return height, width
        if height * width < self.min_area:
            return self._nearest(height, width)
        return -(-height // self.grid) * self.grid, -(-width // self.grid) * self.grid

    def model_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) for the VAE, with an area within the bounds."""
        return self.enlarged_size(*self.mllm_size(height, width))

    def resize(self, frames: Frames, height: int, width: int) -> Frames:
        """Resize (t, h, w, 3) frames bicubically, or with `round_up` by Pillow's Lanczos filter."""
        if self.round_up:
            return pillow_resize(frames, height, width, Image.Resampling.LANCZOS)
        return resize_frames(frames, height, width)

    def _nearest(self, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self.grid, self.min_area, self.max_area)
