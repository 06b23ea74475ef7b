"""The nouns of the field, as types (leaf: imports nothing of ours)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Literal


class Category(str, Enum):
    """The four editing categories of the paper's benchmark (Table 1)."""

    CHANGE = "change"
    REMOVE = "remove"
    ADD = "add"
    STYLE = "style"


TITLES = {
    "change": "Local Change",
    "remove": "Local Remove",
    "add": "Local Add",
    "style": "Global Style",
    "overall": "Overall",
}
"""The paper's names of the categories."""

Operation = Literal["swap", "recolor", "remove", "add", "style"]
"""The playground's kinds of edit; the first two are changes."""

Noun = Literal["dog", "corgi", "cat", "bird", "fish", "car", "tree", "house", "ball", "star", "heart", "cube"]
"""The playground's things."""


@dataclass(frozen=True)
class Triplet:
    """One row of a manifest: a source clip, an instruction, and the clip that it asks for."""

    id: str
    """Unique within its data set."""
    dataset: str
    """Where it comes from: openve, reco, ditto, kiwi or playground."""
    root: str
    """Folder that the clips' paths are relative to; itself relative to the manifest's folder, or absolute."""
    source: str
    target: str
    instruction: str
    category: Category | None
    """Ours; none for the kinds of edit that the paper's benchmark does not have."""
    dataset_category: str
    """The data set's own word for the kind of edit."""
    num_frames: int
    """Frames that both clips have; 0 where they have not been probed."""
    fps: float
    width: int
    height: int
    licence: str
    target_caption: str | None = None
    """Words for the target, l* of the reference branch."""
    caption_model: str | None = None
    """Who wrote them; none where the data set came with them."""
    caption_prompt: str | None = None

    @property
    def key(self) -> str:
        """Unique over all data sets."""
        return f"{self.dataset}/{self.id}"


@dataclass(frozen=True)
class ClipShape:
    """Frames, and pixels of each."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def still(self) -> ClipShape:
        """Its first frame."""
        return replace(self, num_frames=1)


@dataclass(frozen=True)
class EditSettings:
    """How an edit is sampled; what is none is the model's own default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    reuse_key_values: bool = True
    """Project X_e, X_v and X_l to keys and values once per window, not once per step."""
    preserve: bool = False
    """Keep the source's own pixels where the model changed nothing, unless it changed the whole frame."""
    detail: float | Literal["auto"] = "auto"
    """How much of the source's detail is given back in the colours of the edit: 0 none, 1 all; `auto` is 1,
    and 0 for edits whose look is their texture, such as pixel art. See `rvedit.editing.detail`."""
    description: str | None = None
    """Words for the edited clip, for editors that read those and not an instruction."""
    mask: Path | None = None
    """A clip or picture that is white where the edit may be, for editors that take one."""
    frame_rate: float | None = None
    """The source's frames a second, for editors that have a rate of their own."""

    def __post_init__(self) -> None:
        if self.detail != "auto" and not 0 <= self.detail <= 1:
            raise ValueError(f"detail is {self.detail}: give auto, or a number from 0 to 1")

    @property
    def reads_reconstruction(self) -> bool:
        """Whether the VAE's reconstruction of the source is needed: one more decoding for each window."""
        return self.preserve or self.detail != 0


@dataclass(frozen=True)
class Progress:
    """Where an edit stands; all count from 1."""

    window: int
    step: int
    num_steps: int
