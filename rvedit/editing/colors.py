"""Keep colors from drifting over windows, and match them at the border of a mask.

A model's small errors of color add up from window to window, since each continues the one before. Where the
edit left things alone, its colors should relate to the source's as they do in the first window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rvedit.editing.preserve import WHOLE_FRAME_THRESHOLD, difference
from rvedit.editing.windows import EditedFrames
from rvedit.io.frames import Frames, to_frames, to_model_range

MIN_SHARE = 0.1
"""Share of pixels that must be left alone for colors to be compared."""
BORDER_DEPTH = 1 / 16
"""Depth inside a mask over which colors are matched, as a fraction of the frame's short side."""


class ColorMatch:
    """Correction of the colors of successive windows, which starts with the first one's."""

    def __init__(self) -> None:
        self.first: _Relation | None = None
        self.current: _Relation | None = None

    def apply(self, window: EditedFrames) -> EditedFrames:
        """Return a window whose colors relate to its reconstruction as the first one's do."""
        self._measure(window)
        corrected = [
            to_frames(clip if mask is None else match_border(clip, reconstructed, mask))
            for clip, reconstructed, mask in self._corrected(window)
        ]
        return replace(window, edited=np.concatenate(corrected))

    def _measure(self, window: EditedFrames) -> None:
        """Update the relation by the pixels that are left alone, after the correction so far."""
        sums, num_allowed = torch.zeros(5, 3, dtype=torch.float64), 0
        edits = to_clips(window.edited)
        for (corrected, reconstructed, mask), edited in zip(self._corrected(window), edits, strict=True):
            is_alone = difference(corrected, reconstructed)[:, 0] < WHOLE_FRAME_THRESHOLD
            is_alone = is_alone if mask is None else is_alone & mask
            num_allowed += is_alone.numel() if mask is None else int(mask.sum())
            e, r = (clip[:, is_alone].double() for clip in (edited, reconstructed))
            sums += torch.stack([torch.ones_like(e), e, e * e, r, r * r]).sum(dim=2)
        count = float(sums[0, 0])
        if count and count >= MIN_SHARE * num_allowed:
            self.current = _Relation.of(sums[1:] / count)
            self.first = self.first or self.current

    def _corrected(self, window: EditedFrames) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield each frame as clips (3, 1, h, w) of edit and reconstruction, and its mask (1, h, w)."""
        assert window.reconstructed is not None
        masks = repeat(None) if window.masks is None else torch.from_numpy(window.masks)[:, None]
        clips = to_clips(window.edited), to_clips(window.reconstructed)
        for edited, reconstructed, mask in zip(*clips, masks, strict=False):
            if self.first is not None and self.current is not None and self.first is not self.current:
                scale = self.first.gain / self.current.gain
                edited = scale * (edited - self.current.offset) + self.first.offset
            yield edited, reconstructed, mask


def to_clips(frames: Frames) -> Iterator[Float[Tensor, "3 1 h w"]]:
    """Yield each of the frames (t, h, w, 3) as a clip in [-1, 1]: a whole window would be large."""
    return (to_model_range(frame[None]) for frame in frames)


@dataclass(frozen=True)
class _Relation:
    """E = gain R + offset in mean and standard deviation, per channel: (3, 1, 1, 1)."""

    gain: Tensor
    offset: Tensor

    @classmethod
    def of(cls, means: Float[Tensor, "4 3"]) -> _Relation:
        """Return the relation for the means of E, E^2, R and R^2."""
        edit, edit_square, source, source_square = means
        spread = [edit_square - edit.square() + 1e-4, source_square - source.square() + 1e-4]
        gain = (spread[0] / spread[1]).sqrt()
        offset = edit - gain * source
        return cls(*(x.float()[:, None, None, None] for x in (gain, offset)))


def match_border(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"], masks: Bool[Tensor, "t h w"]
) -> Float[Tensor, "3 t h w"]:
    """Return the edit with the colors of the source at the border of the mask.

    Where edit and source differ little, the local mean of their difference is subtracted, less and less
    towards the inside. A larger difference is the edit itself, and stays.
    """
    depth = max(1, round(min(masks.shape[-2:]) * BORDER_DEPTH))

    def smooth(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2 * depth + 1, 1, depth, count_include_pad=False)

    error = (edited - reconstructed).movedim(0, 1)
    is_alone = (difference(edited, reconstructed) < WHOLE_FRAME_THRESHOLD).float()
    local_error = smooth(is_alone * error) / smooth(is_alone).clamp(min=1e-3)
    # The local mean of a mask is about 1/2 at its border, and 1 inside.
    weight = (2 - 2 * smooth(masks[:, None].float())).clamp(0, 1) * smooth(is_alone)
    return edited - (weight * local_error).movedim(1, 0)
