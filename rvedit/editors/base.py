"""The protocol of an editor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rvedit.errors import UserError
from rvedit.records import EditSettings, Progress
from rvedit.video_tensors import Frames


@dataclass(frozen=True)
class Takes:
    """What an editor takes beside a clip and an instruction."""

    description: bool = False
    """Words for the result, which it reads in the instruction's place."""
    mask: bool = False

    def check(self, name: str, settings: EditSettings) -> None:
        """Raises UserError where a description is missing, and for what would be left unheeded."""
        if self.description and not settings.description:
            raise UserError(
                f"{name} reads a description of the result, not an instruction: give it with "
                "--description, or a list with target captions"
            )
        if settings.mask and not self.mask:
            raise UserError(
                f"--mask: is for --model vace and ditto: say to {name} in the instruction where it is to be"
            )


class Editor(Protocol):
    """Whatever answers `rvedit edit`.

    Frames stream in and out one by one, so that a clip of any length is edited in bounded memory.
    """

    name: str
    pipeline: Any
    """Of diffusers' kind."""
    takes: Takes

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
