"""Keep colors from drifting over windows, and match them at the border of a mask.

A model's small errors of color add up from window to window, since each continues the one before. Where the
edit left things alone, its colors should relate to the source's as they do in the first window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rvedit.editing.preserve import WHOLE_FRAME_THRESHOLD, difference
from rvedit.editing.windows import EditedFrames
from rvedit.io.frames import to_frames, to_model_range

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
        assert window.reconstructed is not None
        edited, reconstructed = to_model_range(window.edited), to_model_range(window.reconstructed)
        corrected = self._corrected(edited)
        is_alone = difference(corrected, reconstructed)[:, 0] < WHOLE_FRAME_THRESHOLD
        allowed = torch.ones_like(is_alone) if window.masks is None else torch.from_numpy(window.masks)
        is_alone &= allowed
        if is_alone.sum() >= MIN_SHARE * allowed.sum() and is_alone.any():
            self.current = _Relation.of(edited[:, is_alone], reconstructed[:, is_alone])
            self.first = self.first or self.current
            corrected = self._corrected(edited)
        if window.masks is not None:
            corrected = match_border(corrected, reconstructed, allowed)
        return replace(window, edited=to_frames(corrected))

    def _corrected(self, edited: Float[Tensor, "3 t h w"]) -> Float[Tensor, "3 t h w"]:
        if self.first is None or self.current is None or self.first is self.current:
            return edited
        scale = self.first.gain / self.current.gain
        return scale * (edited - self.current.offset) + self.first.offset


@dataclass(frozen=True)
class _Relation:
    """E = gain R + offset in mean and standard deviation, per channel: (3, 1, 1, 1)."""

    gain: Tensor
    offset: Tensor

    @classmethod
    def of(cls, edited: Float[Tensor, "3 n"], reconstructed: Float[Tensor, "3 n"]) -> _Relation:
        spread = [x.double().var(dim=1, correction=0) + 1e-4 for x in (edited, reconstructed)]
        gain = (spread[0] / spread[1]).sqrt()
        offset = edited.double().mean(dim=1) - gain * reconstructed.double().mean(dim=1)
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
