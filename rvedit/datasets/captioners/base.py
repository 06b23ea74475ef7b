"""The protocol of a captioner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Caption:
    """Words for a clip, who wrote them, and whether they were known already."""

    text: str
    model: str
    from_cache: bool


class Captioner(Protocol):
    """Whatever answers `rvedit caption`."""

    prompt_id: str
    """Names the prompt, the frames, the model and the sampling: equal ids ask the same of a clip."""

    concurrency: int
    """Clips that it works on at a time."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens spent so far."""

    def expected_tokens(self, num_frames: int, width: int, height: int) -> tuple[int, int]:
        """Prompt and completion tokens of one clip, roughly."""

    def known(self, clip: Path) -> Caption | None:
        """The caption, where it is known without looking at the clip again."""

    async def check(self) -> None:
        """Raise UserError where nobody would answer."""

    async def caption(self, clip: Path) -> Caption:
        """Describe a clip. Raises ChatError with the reason that there is no caption."""

    async def close(self) -> None:
        """Let go of connections or weights."""
