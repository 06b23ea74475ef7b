"""The protocols for judging with a multimodal model; their scores are never averaged together.

`paper` (Appendix D.3): scores of 1 to 100, five frames each of source and edit, the paper's rubrics.
`openve` (OpenVE-Bench): scores of 1 to 5, both clips as video files, the benchmark's own categories. Its
rubrics are not distributed with this package: the user names a folder that has them.
`refvie` (RefVIE-Bench): the same for edits with a reference image, which the judge sees first.
`checklist`: yes-or-no questions about each item (rvedit/evaluation/checklist.py).
`vefx` (VEFX-Bench): scores of 1 to 4 by a reward model, which is no chat model (rvedit/evaluation/reward.py).
`measures`: no scores and no model, for a run without judges that score.
"""

from __future__ import annotations

import mimetypes
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.request import CLOSING, EDITED_HEADER, FRAMES, SOURCE_HEADER, Parts
from rvedit.evaluation.rubrics import EDIT_PROMPT, rubric, with_instruction
from rvedit.evaluation.scores import AXES, AXIS_LABELS, read_reasoning, read_scores
from rvedit.io.bench import BenchItem
from rvedit.io.chat import Journal, Jpeg, Video, file_key
from rvedit.io.errors import UserError
from rvedit.io.records import Category

Media = Sequence[Jpeg | Video]
PAPER = "paper"
MEASURES, CHECKLIST = "measures", "checklist"
WITHOUT_AXES = frozenset({MEASURES, CHECKLIST})
"""Protocols whose verdicts have no scores on the three axes; they have tables of their own."""
REFVIE_LABELS = {
    "subject": {
        "ic": "Identity Consistency & Compliance",
        "cf": "Temporal Consistency & Texture Fidelity",
        "vq": "Physical Integration & Tracking",
    },
    "background": {
        "ic": "Reference Fidelity & Preservation",
        "cf": "Matting Quality & Temporal Stability",
        "vq": "Visual Harmony & Perspective",
    },
}
"""RefVIE-Bench's labels by category and axis."""


class JudgeProtocol(ABC):
    """The rubrics, the scale and the media that a judge gets; unless overridden, the media are frames.

    Args:
        frames: frames of the clips, also for the verdicts' digests and the report.
        rubrics: system prompt of each category, with `{edit_prompt}` in place of the instruction.
    """

    name: str
    scale: tuple[int, int]
    """Lowest and highest score."""
    num_frames: int
    """Number of frames sent for a source and its edit; 0 if the video files are sent."""

    def __init__(self, frames: FrameStore, rubrics: dict[str, str]) -> None:
        self.frames, self.rubrics = frames, rubrics

    @abstractmethod
    def category_of(self, item: BenchItem) -> str | None:
        """Return the category that an item is judged by; None if it has no rubric."""

    def check_items(self, items: Sequence[BenchItem]) -> None:
        """Raise UserError if the protocol does not fit the list."""
        return

    @abstractmethod
    def parts(self, source: Media, edited: Media, reference: Media = ()) -> Parts:
        """Return the user message."""

    def reference_image(self, item: BenchItem) -> Path | None:
        """Return the picture that the judge sees beside the clips."""
        return None

    def rubric_of(self, item: BenchItem, category: str) -> str:
        """Return the system prompt for an item."""
        return with_instruction(self.rubrics[category], item.instruction)

    def parse(self, text: str, item: BenchItem, category: str) -> dict[str, Any]:
        """Return the fields of a verdict that the reply has. Raises BadReplyError if they are not in it."""
        scores = read_scores(text, *self.scale, self.labels(category))
        return {"scores": scores, "reasoning": read_reasoning(text)}

    def expected_reply_tokens(self, item: BenchItem) -> int:
        """Return roughly the tokens of a reply, without thinking."""
        return 80

    def labels(self, category: str) -> Mapping[str, str]:
        """Return the axes' labels in the replies."""
        return AXIS_LABELS

    @property
    def axis_labels(self) -> Mapping[str, str]:
        """Return the axes' labels in reports."""
        return AXIS_LABELS

    def cached(self, clip: Path) -> Media | None:
        """Return a clip's media as digests without data, or None if it is new or has changed."""
        return self.frames.cached(clip)

    def read(self, clip: Path) -> Media:
        """Return a clip's media. Raises UserError if the clip is damaged."""
        return self.frames.read(clip)


class PaperProtocol(JudgeProtocol):
    """The paper's protocol (Appendix D.3)."""

    name, scale = PAPER, (1, 100)
    num_frames = 2 * FRAMES.count

    def __init__(self, frames: FrameStore) -> None:
        super().__init__(frames, {category.value: rubric(category) for category in Category})

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`."""
        return item.category.value if item.category else None

    def parts(self, source: Media, edited: Media, reference: Media = ()) -> Parts:
        """See `JudgeProtocol`."""
        return (SOURCE_HEADER, *source, EDITED_HEADER, *edited, CLOSING)


class RubriclessProtocol(JudgeProtocol):
    """A protocol without rubrics and messages, for judges that are no chat models."""

    num_frames = 0

    def __init__(self, frames: FrameStore) -> None:
        super().__init__(frames, {})

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`; every item has one."""
        return item.category.value if item.category else item.dataset_category or "no category"

    def parts(self, source: Media, edited: Media, reference: Media = ()) -> Parts:
        """See `JudgeProtocol`."""
        return ()


class MeasuresProtocol(RubriclessProtocol):
    """No scale: the measures of rvedit/evaluation/model_free.py are no scores."""

    name, scale = MEASURES, (0, 0)


class OpenVEProtocol(JudgeProtocol):
    """OpenVE-Bench's protocol.

    Args:
        rubrics: folder of `<edited_type>.txt` files, each with `{edit_prompt}` in place of the instruction.
        journal: stores the clips' digests.
        frames: frames of the clips for the report.
    """

    name, scale = "openve", (1, 5)
    num_frames = 0

    def __init__(self, rubrics: Path, journal: Journal, frames: FrameStore) -> None:
        super().__init__(frames, _read_rubrics(rubrics, "local_change"))
        self._journal = journal

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`."""
        return item.dataset_category if item.dataset_category in self.rubrics else None

    def parts(self, source: Media, edited: Media, reference: Media = ()) -> Parts:
        """See `JudgeProtocol`."""
        return (*reference, *source, *edited)

    def cached(self, clip: Path) -> Media | None:
        """See `JudgeProtocol`."""
        key = file_key("video", clip)
        digest = self._journal.get(key) if key else None
        return [Video(digest, mime=_mime(clip))] if digest else None

    def read(self, clip: Path) -> Media:
        """See `JudgeProtocol`; the clip is decoded as well, to check that it is complete."""
        self.frames.read(clip)
        video = Video.of(clip.read_bytes(), _mime(clip))
        if key := file_key("video", clip):
            self._journal.put(key, video.sha256)
        return [video]


class RefVIEProtocol(OpenVEProtocol):
    """RefVIE-Bench's protocol, for edits with a reference image.

    Args: see `OpenVEProtocol`; the rubrics are subject.txt and background.txt.
    """

    name = "refvie"

    def __init__(self, rubrics: Path, journal: Journal, frames: FrameStore) -> None:
        JudgeProtocol.__init__(self, frames, _read_rubrics(rubrics, "subject"))
        self._journal = journal
        for name, text in self.rubrics.items():
            if name not in REFVIE_LABELS:
                raise UserError(f"{rubrics / name}.txt: name it {' or '.join(REFVIE_LABELS)}.txt")
            if missing := [label for label in REFVIE_LABELS[name].values() if label not in text]:
                raise UserError(f"{rubrics / name}.txt: does not ask for {missing[0]!r}: add it")

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`; items without a reference image have no rubric."""
        return super().category_of(item) if item.reference_image else None

    def reference_image(self, item: BenchItem) -> Path | None:
        """See `JudgeProtocol`."""
        return item.reference_image

    def labels(self, category: str) -> Mapping[str, str]:
        """See `JudgeProtocol`."""
        return REFVIE_LABELS[category]

    @property
    def axis_labels(self) -> Mapping[str, str]:
        """See `JudgeProtocol`."""
        return {axis: " or ".join(labels[axis] for labels in REFVIE_LABELS.values()) for axis in AXES}


def _read_rubrics(folder: Path, example: str) -> dict[str, str]:
    """Return the rubrics of a folder by name, with `{edit_prompt}`, or `{prompt}`, for the instruction."""
    if not folder.is_dir():
        raise UserError(f"`rubrics` {folder}: no such folder")
    texts = {
        path.stem: path.read_text(encoding="utf-8").replace("{prompt}", EDIT_PROMPT)
        for path in sorted(folder.glob("*.txt"))
    }
    if not texts:
        raise UserError(f"`rubrics` {folder}: has no rubric such as {example}.txt")
    if wrong := [name for name, text in texts.items() if EDIT_PROMPT not in text]:
        raise UserError(f"{folder / wrong[0]}.txt: has no {EDIT_PROMPT} for the instruction: add it")
    return texts


def _mime(clip: Path) -> str:
    return mimetypes.guess_type(clip.name)[0] or "video/mp4"
