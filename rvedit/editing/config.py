"""How a clip is edited: one config for the command line and for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EditConfig:
    """Settings of an edit, for every pipeline; None is the model's own default.

    Raises ValueError for a value out of range.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    preserve: bool = False
    """Keep the source's own pixels where the model changed nothing, unless it changed the whole frame."""
    detail: float | Literal["auto"] = "auto"
    """How much of the source's detail is transferred to the edit: 0 none, 1 all; `auto` is 1, and 0 for edits
    whose look is their texture, such as pixel art. See `rvedit.editing.detail`."""
    description: str | None = None
    """Description of the edited clip, for models that read one instead of an instruction."""
    mask: Path | None = None
    """A clip or picture that is white where the edit may change something, for models that take one."""
    frame_rate: float | None = None
    """The source's frames per second, for models that were trained at a fixed rate."""

    def __post_init__(self) -> None:
        if self.detail != "auto" and not 0 <= self.detail <= 1:
            raise ValueError(f"detail is {self.detail}: give auto, or a number from 0 to 1")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}: give at least 1")
        if self.guidance_scale is not None and self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}: give 0 or more, 1 for none")

    @property
    def needs_reconstruction(self) -> bool:
        """Whether the VAE's reconstruction of the source is needed, which is one more decoding per window."""
        return self.preserve or self.detail != 0


@dataclass(frozen=True)
class Progress:
    """Where an edit stands; all count from 1."""

    window: int
    step: int
    num_steps: int
