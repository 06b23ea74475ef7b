"""Settings of an edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rvedit.pipelines.sigmas import check_shift, check_sigmas


@dataclass(frozen=True)
class EditConfig:
    """Settings of an edit by any pipeline.

    Raises ValueError for a value out of range.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    """As the number of steps: None is the model's default."""
    seed: int = 0
    preserve: bool = False
    """Keep the source's pixels where the model changed nothing, unless it changed the whole frame."""
    detail: float | Literal["auto"] = "auto"
    """Strength of detail transfer from source to edit, from 0 to 1; `auto` is 1, or 0 for edits with a
    texture of their own, such as pixel art. See `rvedit.editing.detail`."""
    description: str | None = None
    """Description of the edited clip, for models that read it instead of an instruction."""
    mask: Any = None
    """Where the edit may change the video, which is white: a clip or image file, an array (h, w) or
    (t, h, w), masks (h, w) one by one, or a box such as "10%,20%,40%,50%". None: everywhere. Booleans; 0 and
    1; levels, of which 128 and more are white; or floats, of which 0.5 and more are."""
    grow: int = 0
    """Number of pixels that the mask is grown by, at the source's size."""
    invert_mask: bool = False
    """Change what is black in the mask instead."""
    frame_rate: float | None = None
    """Frames per second of the source, for models with a fixed frame rate. `edit_file` sets it to the file's;
    None lets the model see every frame."""
    shift: float | None = None
    """Shift of the timesteps towards noise; None is the model's own."""
    sigmas: list[float] | None = None
    """Noise levels of the denoising steps, falling from 1, instead of the number of steps and the shift."""
    reference_image: Any = None
    """A picture of what the instruction refers to, for models that read one: an image file, or a picture in
    any form that `RVEDiTPipeline` takes."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.detail, int | float)
        if self.detail != "auto" and not (is_number and 0 <= self.detail <= 1):
            raise ValueError(f"detail is {self.detail}: give auto, or a number from 0 to 1")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}: give at least 1")
        if self.guidance_scale is not None and not self.guidance_scale >= 0:  # nor NaN
            raise ValueError(f"guidance_scale is {self.guidance_scale}: give 0 or more; 1 turns guidance off")
        if self.shift is not None:
            check_shift(self.shift)
        if self.sigmas is not None:
            check_sigmas(self.sigmas)
        if not isinstance(self.grow, int) or self.grow < 0:
            raise ValueError(f"grow is {self.grow}: give a number of pixels, or 0")
        if self.mask is None and (self.grow or self.invert_mask):
            raise ValueError("grow and invert_mask: need a mask")
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate}: give frames per second, or None")

    @property
    def needs_reconstruction(self) -> bool:
        """Whether the VAE's reconstruction of the source is needed: one more decoding per window."""
        return self.preserve or self.detail != 0

    @property
    def needs_source(self) -> bool:
        """Whether the output is made from the source's pixels at full size."""
        return self.needs_reconstruction or self.mask is not None


@dataclass(frozen=True)
class Progress:
    """Progress of an edit: window and step count from 1; `num_steps` is the total of the window."""

    window: int
    step: int
    num_steps: int
    edit: int = 1
    """The number of the instruction, if a file is edited by several."""
