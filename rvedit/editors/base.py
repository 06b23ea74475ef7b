"""The protocol of an editor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from rvedit.records import EditSettings, Progress
from rvedit.video_tensors import Frames


class Editor(Protocol):
    """Whatever answers `rvedit edit`.

    Frames stream in and out one by one, so that a clip of any length is edited in bounded memory.
    """

    name: str
    pipeline: Any
    """Of diffusers' kind."""

    def edit(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Frames]:
        """Edit frames (h, w, 3): as many come out as go in, of the same size (Eq. 1)."""

    def windows(self, num_frames: int) -> int:
        """Windows that a clip of so many frames is edited in, for the progress bar."""
