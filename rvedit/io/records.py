"""The nouns of the field, as types (leaf: imports nothing of ours)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Category(str, Enum):
    """The four editing categories of the paper's benchmark (Table 1)."""

    CHANGE = "change"
    REMOVE = "remove"
    ADD = "add"
    STYLE = "style"


CATEGORY_TITLES = {
    "change": "Local Change",
    "remove": "Local Remove",
    "add": "Local Add",
    "style": "Global Style",
    "overall": "Overall",
}
"""The paper's names of the categories."""


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
