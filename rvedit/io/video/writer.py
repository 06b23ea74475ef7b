"""Write clips with the size, times, color tags and audio of a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from rvedit.io.errors import UserError
from rvedit.io.temporary import remove_stale, temporary_sibling
from rvedit.io.video.clip import BT709, LIMITED, Frame, TimedFrame, VideoInfo
from rvedit.io.video.losses import holds_sound, losses
from rvedit.io.video.sinks import CODECS, ContainerSink, ImageSink

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")
"""Suffixes of outputs that hold one frame."""
OUTPUT_SUFFIXES = (*CODECS, *PICTURE_SUFFIXES)
"""Suffixes that `VideoWriter` supports; images hold one frame."""


def default_suffix(info: VideoInfo) -> str:
    """Return the suffix of an edit: the source's, if it can be written.

    Images in other formats become png. Such videos, and folders of frames, become mp4, or mkv if only that
    holds their sound.
    """
    suffix = info.path.suffix.lower()
    if info.kind != "folder" and suffix in OUTPUT_SUFFIXES:
        return suffix
    needs_mkv = not holds_sound(info, ".mp4") and holds_sound(info, ".mkv")
    return ".png" if info.kind == "image" else ".mkv" if needs_mkv else ".mp4"


class VideoWriter:
    """Writer of clips with a source's times, frame rate, color tags and audio; replaces `path` when complete.

    The suffix selects the container: .mp4, .mov and .mkv (H.264), .webm (VP9), .gif, or .png and .jpg for
    a single frame. `width` and `height` default to the source's. `crf` is the encoder's quality (lower is
    better; 16 for H.264 and 20 for VP9 by default); `preset` is x264's speed: "veryfast" takes about
    half the time of "medium" and makes larger files. Sound, subtitles, chapters and tags are copied, never
    re-encoded; construction warns of those that the container does not hold.

    Times are exact in .mp4 and .mov (a start after zero to 0.02 ms), to 1 ms in .mkv and .webm, to 5 ms in
    .gif, which also starts at zero. Audio that starts before zero, as AAC from .mp4 does by about 20 ms,
    delays all of an .mkv by as much; video and audio stay in sync.

    Raises UserError on construction if the output exists (unless `overwrite`), is the input, has an unknown
    suffix or a missing folder; later if the encoder or the disk fails. No file is left after an exception in
    the `with` block.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        like: VideoInfo,
        overwrite: bool = False,
        width: int | None = None,
        height: int | None = None,
        crf: int | None = None,
        preset: str = "medium",
    ) -> None:
        self.path = Path(path)
        self._like = like
        self._width, self._height = width or like.width, height or like.height
        self._crf, self._preset = crf, preset
        self._last_pts: int | None = None
        self._sink: ContainerSink | ImageSink | None = None
        self._temporary = temporary_sibling(self.path)
        try:
            _check_output(self.path, like, overwrite)
            try:  # Permission bits are not enough: the file system may be read-only.
                self._temporary.touch(exist_ok=False)
            finally:  # also when interrupted
                self._temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write in {self.path.parent} ({error.strerror}); "
                "choose another place or name"
            ) from error
        for loss in losses(like, self.path.suffix.lower()):
            warnings.warn(f"{like.path}: {loss}", stacklevel=1)

    def __enter__(self) -> VideoWriter:
        size = (self._width, self._height)
        remove_stale(self.path.parent)
        try:
            with self._as_user_error():
                if self.path.suffix.lower() in PICTURE_SUFFIXES:
                    self._sink = ImageSink(self._temporary)
                else:
                    self._sink = ContainerSink(self._temporary, self._like, size, self._crf, self._preset)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        return self

    def write(self, frame: Frame, pts: int, duration: int | None = None) -> None:
        """Append a frame (h w 3, uint8) shown at `pts` for `duration`, in ticks of the source's time base.

        Raises ValueError if `pts` does not increase, for another frame size, and outside the `with` block.
        """
        if self._sink is None:
            raise ValueError("VideoWriter.write outside its with block")
        if frame.shape != (self._height, self._width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a {frame.dtype} frame of {frame.shape} for {self._width}x{self._height}")
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(f"frame time {pts} does not follow {self._last_pts}")
        self._last_pts = pts
        with self._as_user_error():
            self._sink.write(frame, pts, duration)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        sink, self._sink = self._sink, None
        assert sink is not None
        try:
            if error is None:
                if self._last_pts is None:
                    raise UserError(f"{self.path}: no frame to write; check the input")
                with self._as_user_error():
                    sink.finish()
                    os.replace(self._temporary, self.path)
        finally:
            sink.discard()
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        """Turn errors of the encoder or the disk into a UserError that names the output."""
        try:
            yield
        except (FFmpegError, OSError) as error:
            raise UserError(
                f"{self.path}: cannot be written at {self._width}x{self._height} "
                f"({error.strerror or error}); check the disk and the frame size, or choose another container"
            ) from error


def _check_output(path: Path, like: VideoInfo, overwrite: bool) -> None:
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"{path}: unknown output format; choose one of {' '.join(OUTPUT_SUFFIXES)}")
    if suffix in PICTURE_SUFFIXES and like.num_frames > 1:
        raise UserError(
            f"{path}: holds one frame, but {like.path.name} has {like.num_frames}; "
            f"choose one of {' '.join(CODECS)}"
        )
    check_target(path, like, overwrite)


def check_target(path: Path, like: VideoInfo, overwrite: bool) -> None:
    """Raise UserError if a file of an edit of `like` cannot be written there, whatever its format."""
    if not path.parent.exists():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is a file, not a folder; choose another output")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the output a file name")
    if path.exists():
        if not path.is_file():
            raise UserError(f"{path}: is a pipe, socket or device, not a file; choose another output")
        if like.path.exists() and path.samefile(like.path):
            raise UserError(f"{path}: is the input itself; choose another output")
        if not overwrite:
            raise UserError(f"{path}: exists; set `overwrite` or choose another output")


def write_clip(path: Path, frames: NDArray[np.uint8], frame_rate: int) -> None:
    """Write frames (t, h, w, 3) as a clip of constant rate and high quality; replaces an existing file."""
    count, height, width, _ = frames.shape
    info = VideoInfo(
        path=Path("frames in memory"),
        kind="video",
        width=width,
        height=height,
        num_frames=count,
        frame_rate=Fraction(frame_rate),
        time_base=Fraction(1, frame_rate),
        duration=count / frame_rate,
        color_range=LIMITED,
        colorspace=BT709,
        color_primaries=BT709,
        color_trc=BT709,
        pix_fmt="yuv420p",
    )
    with VideoWriter(path, like=info, crf=10, preset="veryfast", overwrite=True) as writer:
        for pts, frame in enumerate(frames):
            writer.write(frame, pts, 1)


def write_like(path: Path, like: VideoInfo, frames: Iterable[TimedFrame]) -> None:
    """Write frames of one size with the times and audio of another clip; replaces an existing file."""
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise UserError(f"{path}: no frame to write; check the input")
    height, width = first.frame.shape[:2]
    with VideoWriter(path, like=like, overwrite=True, width=width, height=height) as writer:
        for timed in chain([first], stream):
            writer.write(timed.frame, timed.pts, timed.duration)
