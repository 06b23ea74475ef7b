"""Overlapping windows over a long clip.

The VAE's first latent frame covers one frame, each later one four. The stride of windows is a multiple of
four, so each latent frame of a window but the first covers the same four frames as one of the previous
window, and is copied from there. The first one covers a single frame here and four there, so it is encoded
from that frame as it was edited. (Windows edited independently and cross-faded showed a jump at every seam.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from rvedit.io.frames import Frames
from rvedit.models.autoencoder import FRAMES_PER_LATENT
from rvedit.pipelines.noise import mix_shared_noise
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline


@dataclass(frozen=True)
class WindowPlan:
    """Length and stride of windows, in frames; windows overlap if the stride is the shorter one."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        overlaps = self.stride < self.length
        is_aligned = self.length % FRAMES_PER_LATENT == 1 and self.stride % FRAMES_PER_LATENT == 0
        if not 0 < self.stride <= self.length or (overlaps and not is_aligned):
            raise ValueError(
                f"window of {self.length} frames every {self.stride}: the length must be 4k+1, the stride a "
                "multiple of 4 and shorter than the window"
            )

    @classmethod
    def of(cls, pipeline: RVEDiTPipeline) -> WindowPlan:
        """Return the window plan of a pipeline's config."""
        plan = cls(pipeline.config.window_frames, pipeline.config.window_stride)
        if plan.stride == plan.length:
            raise ValueError(f"window_stride {plan.stride}: give less than window_frames, {plan.length}")
        return plan

    @property
    def latent_stride(self) -> int:
        """Stride in latent frames."""
        return self.stride // FRAMES_PER_LATENT

    def count(self, num_frames: int) -> int:
        """Return the number of windows of a clip."""
        return 1 + max(0, -(-(num_frames - self.length) // self.stride))


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a clip, at the sampler's `input_size`; masks have its `size`."""

    index: int
    frames: Frames
    first_new: int
    """Index within the window of the first frame that no earlier window contains."""
    masks: Bool[np.ndarray, "t h w"] | None = None
    """Where the edit may change the frames; None: everywhere."""


@dataclass(frozen=True)
class EditedFrames:
    """Consecutive frames and their edit; all (t, h, w, 3) at the model's size."""

    edited: Frames
    reconstructed: Frames | None
    """The source after encoding and decoding by the VAE; None if the settings do not need it."""
    source: Frames
    masks: Bool[np.ndarray, "t h w"] | None = None
    """Where the edit may change the frames; None: everywhere."""


def split(frames: Iterable[tuple[Frames, Any]], plan: WindowPlan) -> Iterator[Window]:
    """Split a stream of frames (h, w, 3) and their masks into windows; the last one may be shorter.

    Masks are (h, w), or all None. One window is held at a time.
    """
    source = iter(frames)
    window: list[tuple[Frames, Any]] = []
    index = 0
    following = next(source, None)
    while following is not None:
        while following is not None and len(window) < plan.length:
            window.append(following)
            following = next(source, None)
        stack, masks = zip(*window, strict=True)
        yield Window(
            index,
            np.stack(stack),
            first_new=plan.length - plan.stride if index else 0,
            masks=None if masks[0] is None else np.stack(masks),
        )
        window = window[plan.stride :]
        index += 1


def pad_frames(frames: NDArray[Any], length: int | None = None) -> NDArray[Any]:
    """Repeat the last frame, or mask, up to `length` frames, by default up to the next 4k+1."""
    missing = (1 - len(frames)) % FRAMES_PER_LATENT if length is None else length - len(frames)
    return np.concatenate([frames, frames[-1:].repeat(missing, axis=0)]) if missing else frames


def carry_over(
    previous: Float[Tensor, "b c f h w"], first: Float[Tensor, "b c 1 h w"], plan: WindowPlan
) -> Float[Tensor, "b c k h w"]:
    """Return the pipeline's `prefix_latents` of a window: `first`, then latents of the previous window.

    `first` encodes the window's first frame as the previous window edited it.
    """
    return torch.cat([first, previous[:, :, plan.latent_stride + 1 :]], dim=2)


class WindowNoise:
    """Initial noise of successive windows, which share it where they overlap.

    The first window's is `torch.randn(shape, generator=manual_seed(seed))` in fp32 on the CPU, so equal seeds
    give equal noise on every device. All frames have the fraction `shared_ratio` of its variance in common.
    """

    def __init__(self, plan: WindowPlan, seed: int, shared_ratio: float = 0.0):
        self.plan = plan
        self.shared_ratio = shared_ratio
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._noise: Tensor | None = None
        self._shared: Tensor | None = None

    def draw(self, shape: tuple[int, ...]) -> Float[Tensor, "b c f h w"]:
        """Return the noise of the next window, of shape (b, c, f, h, w)."""
        if self._noise is None or self._shared is None:
            self._noise = torch.randn(shape, generator=self._generator)
            self._shared = torch.randn((*shape[:2], 1, *shape[3:]), generator=self._generator)
        else:
            stride = self.plan.latent_stride
            new = torch.randn((*shape[:2], stride, *shape[3:]), generator=self._generator)
            self._noise = torch.cat([self._noise[:, :, stride:], new], dim=2)
        return mix_shared_noise(self._noise, self._shared, self.shared_ratio)
