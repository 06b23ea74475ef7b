"""Preservation (`EditConfig.preserve`): keep the source's pixels where the edit changed nothing.

The VAE loses the same detail in the edit and in its reconstruction of the source, so the two differ only
where the model edited something. There the output shows the edit, elsewhere the source's pixels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.io.frames import Frames, to_model_range

# Thresholds are for channels in [0, 1].
LOW = 0.12
"""Smaller differences between edit and reconstruction are the model's noise: mask 0."""
HIGH = 0.25
"""Larger differences are the edit: mask 1. In between, the mask rises linearly."""
RADIUS = 1 / 128
"""Radius of the average of differences, and then of the mask, as a fraction of the short side."""
WHOLE_FRAME_THRESHOLD = 0.05
"""Difference above which a pixel counts as changed, for edits of the whole frame, such as a style."""
WHOLE_FRAME_SHARE = 0.5
"""Share of changed pixels above which an edit is of the whole frame, and nothing is preserved."""
REACH = 2
"""Number of frames before and after a frame that influence its mask."""


def is_whole_frame_edit(edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"]) -> bool:
    """Return whether an edit changes the whole frame."""
    is_changed = difference(edited, reconstructed) > WHOLE_FRAME_THRESHOLD
    return bool(is_changed.float().mean() > WHOLE_FRAME_SHARE)


def change_map(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"]
) -> Float[Tensor, "t h w"]:
    """Return where each frame was edited, from 0 (source) to 1 (edit). Clips are in [-1, 1]."""
    return ((difference(edited, reconstructed) - LOW) / (HIGH - LOW)).clamp(0, 1)[:, 0]


def soften(change: Float[Tensor, "t h w"]) -> Float[Tensor, "t h w"]:
    """Return the masks of successive frames: a change map with soft borders in space and time."""
    # Maxima over three frames extend each change by a frame, means over three let it fade by another one.
    change = F.max_pool3d(rearrange(change, "t h w -> 1 1 t h w"), (3, 1, 1), 1, (1, 0, 0))
    change = F.avg_pool3d(change, (3, 1, 1), 1, (1, 0, 0), count_include_pad=False)
    return _local_mean(rearrange(change, "1 1 t h w -> t 1 h w"))[:, 0]


def difference(
    edited: Float[Tensor, "3 t h w"], reconstructed: Float[Tensor, "3 t h w"]
) -> Float[Tensor, "t 1 h w"]:
    """Return the local mean of the largest difference over channels, in [0, 1]."""
    return _local_mean((edited - reconstructed).abs().amax(dim=0)[:, None] / 2)


class PreserveMasks:
    """Masks (h, w) of a stream of frames: 1 where the edit shows, 0 where the source does.

    A mask is None for edits of the whole frame. It is returned once the next `REACH` frames are there.
    """

    def __init__(self) -> None:
        self.is_whole_frame: bool | None = None  # decided by the first window
        self.num_pending = 0
        self.changes: Tensor | None = None  # of pending frames, and of REACH frames before them

    def add(self, edited: Frames, reconstructed: Frames) -> Iterator[Tensor | None]:
        """Add edited frames (t, h, w, 3) and their reconstructed source; yield the masks that are ready."""
        clips = to_model_range(edited), to_model_range(reconstructed)
        if self.is_whole_frame is None:
            self.is_whole_frame = is_whole_frame_edit(*clips)
        if self.is_whole_frame:
            yield from [None] * len(edited)
            return
        new = change_map(*clips)
        self.changes = new if self.changes is None else torch.cat([self.changes, new])
        self.num_pending += len(edited)
        yield from self._pop(self.num_pending - REACH)

    def flush(self) -> Iterator[Tensor | None]:
        """Yield the masks of the pending frames, after the last frame."""
        return self._pop(self.num_pending)

    def _pop(self, count: int) -> Iterator[Tensor | None]:
        if self.changes is None or count <= 0:
            return
        before = len(self.changes) - self.num_pending
        masks = soften(self.changes)[before : before + count]
        self.changes = self.changes[max(0, before + count - REACH) :]
        self.num_pending -= count
        yield from masks


def composite(source: Frames, edited: Frames, mask: Float[Tensor, "h w"]) -> Frames:
    """Return the edit where the mask is 1 and the source where it is 0: frames (h, w, 3), any mask size."""
    size = source.shape[:2]
    weight = F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    weights = weight.clamp(0, 1).cpu().numpy()[..., None]
    mixed = source + weights * (edited.astype(np.float32) - source)
    return np.where(weights > 0, np.round(mixed), source).astype(np.uint8)


def _local_mean(x: Float[Tensor, "t 1 h w"]) -> Float[Tensor, "t 1 h w"]:
    radius = max(1, round(min(x.shape[-2:]) * RADIUS))
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
