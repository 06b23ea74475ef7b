"""Records that all jobs share: categories, triplets and clip shapes (imports nothing from rvedit)."""

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
"""Titles of the categories in the paper's tables."""


@dataclass(frozen=True)
class Triplet:
    """One row of a manifest: a source clip, an instruction and the target clip."""

    id: str
    """Unique within the dataset."""
    dataset: str
    """Name of the dataset: openve, reco, ditto, kiwi, pairs or playground."""
    root: str
    """Folder of the clips' paths, itself relative to the manifest's folder or absolute."""
    source: str
    target: str
    instruction: str
    category: Category | None
    """The paper's category; None for edits that its benchmark does not have."""
    dataset_category: str
    """The dataset's own name of the category."""
    num_frames: int
    """Frames that both clips have; 0 before they are probed."""
    fps: float
    width: int
    height: int
    licence: str
    target_caption: str | None = None
    """Caption of the target: l* of the reference branch."""
    caption_model: str | None = None
    """Model that wrote the caption; None if it is the dataset's own."""
    caption_prompt: str | None = None
    reference_image: str | None = None
    """Picture of what the instruction refers to, if there is one; its path is relative to `root`."""
    mask: str | None = None
    """Clip or image that is white where the edit changes the source, likewise."""

    @property
    def key(self) -> str:
        """Id that is unique over all datasets."""
        return f"{self.dataset}/{self.id}"


@dataclass(frozen=True)
class ClipShape:
    """Number of frames, and their size in pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def still(self) -> ClipShape:
        """Shape of the first frame alone."""
        return replace(self, num_frames=1)
