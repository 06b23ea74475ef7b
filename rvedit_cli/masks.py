"""Masks of `rvedit edit`: checks, and the search for regions in words, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvedit.editing.config import EditConfig
from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.editing.time_range import FrameRange
    from rvedit.io.video import VideoInfo, VideoReader


def check_masks(places: Sequence[Any], info: VideoInfo, grow: int, invert_mask: bool) -> None:
    """Check the places that are mask files or boxes."""
    for place in places:
        if place is not None and not isinstance(place, str):
            from rvedit.editing.mask import check_mask  # imports torch

            check_mask(EditConfig(mask=place, grow=grow, invert_mask=invert_mask), info)


def check_saved_mask(path: Path, place: Any, info: VideoInfo, overwrite: bool) -> None:
    """Check that the mask of a place can be written; that of words moves."""
    from rvedit.editing.mask import mask_writer

    mask_writer(path, info, EditConfig(mask=place), overwrite)


def find_masks(
    places: Sequence[Any],
    reader: VideoReader,
    part: FrameRange | None,
    segmenter: str | None,
    device: str | None,
) -> list[Any]:
    """Return the mask of each place: itself, or for words what a segmentation model finds."""
    words = list(dict.fromkeys(place for place in places if isinstance(place, str)))
    if not words:
        if segmenter is not None:
            raise UserError('--segmenter: needs --region with words, such as "the dog"')
        return list(places)
    from rvedit.editing.regions import find_region
    from rvedit.editing.segmenters import DEFAULT_SEGMENTER, check_segmenter, load_segmenter

    name = DEFAULT_SEGMENTER if segmenter is None else segmenter
    console.quiet_libraries()
    check_segmenter(name)
    model = load_segmenter(name, device)
    total = part.stop - part.first if part else reader.info.num_frames
    found: dict[Any, Any] = {}
    with console.progress_bar(*(f"finding {text}" for text in words), total=total) as show:
        for text in words:
            frames = (timed.frame for timed in reader)
            report = partial(show, name=f"finding {text}")
            found[text] = find_region(frames, text, model, part, report)
    return [found.get(place, place) for place in places]
