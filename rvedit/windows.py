"""Windows over a long clip, in the VAE's time: one frame, then groups of four.

Windows start at multiples of the stride, a multiple of four, so every latent of a window but its first covers
the same four frames as a latent of the window before. Those are carried over, and the first one, which covers
a single frame here and four there, is that frame as it was edited: a window goes on from what was edited, and
does not begin anew. (Windows that were edited apart and cross-faded showed a jump at every seam.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rvedit.video_tensors import Frames

GROUP = 4


@dataclass(frozen=True)
class WindowPlan:
    """How long windows are and how far apart, in frames."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if self.length % GROUP != 1 or self.stride % GROUP or not 0 < self.stride < self.length:
            raise ValueError(
                f"window of {self.length} frames every {self.stride}: the length must be 4k+1, the stride a "
                "multiple of 4 and shorter than the window"
            )

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
        """Latent frames that two neighbours share."""
        return self.latents - 1 - self.shift

    def count(self, num_frames: int) -> int:
        """Windows of a clip."""
        return 1 + max(0, -(-(num_frames - self.length) // self.stride))


@dataclass(frozen=True)
class Window:
    """Some consecutive frames of a clip; the last window repeats its last frame up to the full length."""

    index: int
    frames: Frames
    first_new: int
    """First frame, counted within the window, that no earlier window gives."""
    end: int
    """One past the last frame that this window gives."""


def split(frames: Iterable[Frames], plan: WindowPlan) -> Iterator[Window]:
    """Cut a stream of single frames (h, w, 3) into windows, holding one window's frames at a time.

    A clip shorter than a window is padded to the next 4k+1 frames only.
    """
    source = iter(frames)
    held: list[Frames] = []
    index = 0
    ahead = next(source, None)
    while ahead is not None:
        while ahead is not None and len(held) < plan.length:
            held.append(ahead)
            ahead = next(source, None)
        real = len(held)
        full = plan.length if index else min(plan.length, real + (1 - real) % GROUP)
        padded = held + [held[-1]] * (full - real)
        yield Window(index, np.stack(padded), first_new=plan.length - plan.stride if index else 0, end=real)
        held = held[plan.stride :]
        index += 1


def carry_over(
    previous: Float[Tensor, "b c f h w"], first: Float[Tensor, "b c 1 h w"], plan: WindowPlan
) -> Float[Tensor, "b c k h w"]:
    """The latents of a window that are known from the one before: its first ones.

    `first` is its first frame, as it was edited before; the others are the previous window's own.
    """
    return torch.cat([first, previous[:, :, plan.shift + 1 :]], dim=2)


def share_over_frames(
    noise: Float[Tensor, "*b c f h w"], common: Float[Tensor, "*b c 1 h w"], share: float
) -> Float[Tensor, "*b c f h w"]:
    """Noise of which all frames have a share in common: the mixed noise of PYoCo (arXiv:2305.10474).

    What a model gets a little wrong depends on its noise: errors that frames share do not flicker.
    """
    return float((1 - share) ** 0.5) * noise + float(share**0.5) * common if share else noise


class WindowNoise:
    """Initial noise of each window: neighbours share it where they overlap.

    The first window has `torch.randn(shape, generator=manual_seed(seed))` in fp32 on the CPU, so that equal
    seeds are equal noise on every device; with a `share`, it is mixed with what all frames have in common.
    """

    def __init__(self, plan: WindowPlan, seed: int, share: float = 0.0):
        self.plan = plan
        self.share = share
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.held: Tensor | None = None
        self.common: Tensor | None = None

    def draw(self, shape: tuple[int, ...]) -> Float[Tensor, "b c f h w"]:
        """Noise of the next window, of shape (b, c, f, h, w)."""
        if self.held is None or self.common is None:
            self.held = torch.randn(shape, generator=self.generator)
            self.common = torch.randn((*shape[:2], 1, *shape[3:]), generator=self.generator)
        else:
            fresh = torch.randn((*shape[:2], self.plan.shift, *shape[3:]), generator=self.generator)
            self.held = torch.cat([self.held[:, :, self.plan.shift :], fresh], dim=2)
        return share_over_frames(self.held, self.common, self.share)
