"""Windows over a long clip, in the VAE's time: one frame, then groups of four.

RVEDiT's windows overlap. They start at multiples of the stride, a multiple of four, so every latent frame
of a window but its first covers the same four frames as a latent frame of the window before. Those are
carried over, and the first one, which covers a single frame here and four there, is encoded from that frame
as it was edited: a window continues the one before instead of starting afresh. (Windows edited independently
and cross-faded showed a jump at every seam.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rvedit.io.frames import Frames
from rvedit.pipelines.noise import mix_shared_noise
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

GROUP = 4
"""Frames of a latent frame, but for the first, which covers one."""


@dataclass(frozen=True)
class WindowPlan:
    """Length and stride of windows, in frames; they overlap if the stride is shorter than the length."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        overlaps = self.stride < self.length
        fits = self.length % GROUP == 1 and self.stride % GROUP == 0
        if not 0 < self.stride <= self.length or (overlaps and not fits):
            raise ValueError(
                f"window of {self.length} frames every {self.stride}: the length must be 4k+1, the stride a "
                "multiple of 4 and shorter than the window"
            )

    @classmethod
    def of(cls, pipeline: RVEDiTPipeline) -> WindowPlan:
        """Return the windows that a pipeline was configured for."""
        plan = cls(pipeline.config.window_frames, pipeline.config.window_stride)
        if plan.stride == plan.length:
            raise ValueError(f"window_stride {plan.stride}: windows of {plan.length} frames have to overlap")
        return plan

    @property
    def latents(self) -> int:
        """Latent frames of a window."""
        return 1 + (self.length - 1) // GROUP

    @property
    def shift(self) -> int:
        """Latent frames from one window's start to the next."""
        return self.stride // GROUP

    @property
    def overlap(self) -> int:
        """Latent frames that a window takes over from the one before, its first frame aside."""
        return self.latents - 1 - self.shift

    def count(self, num_frames: int) -> int:
        """Return the number of windows of a clip."""
        return 1 + max(0, -(-(num_frames - self.length) // self.stride))


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a clip."""

    index: int
    frames: Frames
    first_new: int
    """The first frame, counted within the window, that no earlier window gives."""


def split(frames: Iterable[Frames], plan: WindowPlan) -> Iterator[Window]:
    """Cut a stream of frames (h, w, 3) into windows, holding one at a time; the last may be shorter."""
    source = iter(frames)
    held: list[Frames] = []
    index = 0
    ahead = next(source, None)
    while ahead is not None:
        while ahead is not None and len(held) < plan.length:
            held.append(ahead)
            ahead = next(source, None)
        yield Window(index, np.stack(held), first_new=plan.length - plan.stride if index else 0)
        held = held[plan.stride :]
        index += 1


def pad_frames(frames: Frames, length: int | None = None) -> Frames:
    """Repeat the last frame up to a length, or up to the next 4k+1 frames."""
    missing = (1 - len(frames)) % GROUP if length is None else length - len(frames)
    return np.concatenate([frames, frames[-1:].repeat(missing, axis=0)]) if missing else frames


def carry_over(
    previous: Float[Tensor, "b c f h w"], first: Float[Tensor, "b c 1 h w"], plan: WindowPlan
) -> Float[Tensor, "b c k h w"]:
    """Return the latents of a window that the previous window determines: `prefix_latents` of the pipeline.

    `first` is the window's first frame, as it was edited, encoded; the others are the previous window's own.
    """
    return torch.cat([first, previous[:, :, plan.shift + 1 :]], dim=2)


class WindowNoise:
    """Initial noise of each window: neighbors share it where they overlap.

    The first window's is `torch.randn(shape, generator=manual_seed(seed))` in fp32 on the CPU, so equal seeds
    are equal noise on every device; `shared_ratio` of its variance is common to all frames.
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
            fresh = torch.randn((*shape[:2], self.plan.shift, *shape[3:]), generator=self._generator)
            self._noise = torch.cat([self._noise[:, :, self.plan.shift :], fresh], dim=2)
        return mix_shared_noise(self._noise, self._shared, self.shared_ratio)
