"""RVEDiT itself: the embedded nano, or a folder or hub id with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rvedit.editors.base import Takes
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings, Progress
from rvedit.video_tensors import Frames


class RVEDiTEditor:
    """`RVEDiTPipeline` as an editor."""

    takes = Takes()

    def __init__(self, pipeline: RVEDiTPipeline, name: str):
        self.pipeline = pipeline
        self.name = name

    def edit(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[Frames]:
        """See `Editor.edit`. Raises UserError for a mask, which this model does not read."""
        self.takes.check(self.name, settings)
        return self.pipeline.stream(frames, instruction, settings, on_progress)

    def edit_together(
        self, clips: Sequence[Frames], instructions: Sequence[str], settings: EditSettings
    ) -> list[Frames]:
        """Edit clips of one size and length, no longer than a window, in one pass."""
        return self.pipeline.edit_together(clips, instructions, settings)

    def windows(self, num_frames: int) -> int:
        """See `Editor.windows`."""
        return self.pipeline.window_plan.count(num_frames)
