"""Read clips: any video that PyAV decodes, a still image, or a folder of images."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from rvedit.io.errors import UserError
from rvedit.io.video.clip import Frame, Lost, TimedFrame, TruncatedError, VideoInfo
from rvedit.io.video.containers import decode_container, probe_container
from rvedit.io.video.images import IMAGE_SUFFIXES, decode_images, probe_images

_REMEDY = "set `allow_truncated` to edit the frames that decode, or get a complete copy"


def probe(path: str | Path) -> VideoInfo:
    """Describe a clip; reads every packet but decodes one frame.

    Raises UserError for a missing file, one that is not a video, or one without a decodable frame. For one
    that is damaged later `truncated` is set.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        if not (path.is_dir() or path.is_file()):  # these are read once, and may never end
            raise UserError(f"{path}: is a pipe, socket or device; save what it holds to a file first")
        if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
            return probe_images(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the name and its permissions"
        ) from error
    return probe_container(path)


def read_image(path: str | Path) -> Frame:
    """Return the one frame of an image, with transparent parts over white. Raises UserError for others."""
    with VideoReader(path, background="white") as reader:
        if reader.info.num_frames != 1:
            raise UserError(f"{path}: has {reader.info.num_frames} frames; give an image")
        return next(iter(reader)).frame


class VideoReader:
    """Iterable over a clip's frames: streamed in display order, upright, with strictly increasing times.

    Every iteration decodes from the start, independently of others. A damaged clip raises UserError, on
    construction or after the last frame before the damage; with `allow_truncated`, frames that do not decode
    are left out, and one warning at the end says how many.
    `threads`: 0 lets the decoder choose; 1 is best when several clips are read at once. `background`: the
    color under transparent parts of images.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        allow_truncated: bool = False,
        threads: int = 0,
        background: str = "black",
    ) -> None:
        self.info = probe(path)
        self._allow_truncated = allow_truncated
        self._threads, self._background = threads, background
        self._iterations = ExitStack()
        self._warned: set[str] = set()
        if self.info.truncated and not allow_truncated:
            # Raised before the first frame, so that nobody waits for an edit that cannot finish.
            if self.info.ends_early:
                raise UserError(self._truncated(self.info.num_frames, "its data end early"))
            raise UserError(f"{path}: is damaged; {_REMEDY}")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._iterations.close()

    def __iter__(self) -> Iterator[TimedFrame]:
        return self.pick(None)

    def pick(self, wanted: Collection[int] | None) -> Iterator[TimedFrame]:
        """Yield the frames with these numbers, from 0, or all; the others are decoded, but not converted."""
        return self._iterations.enter_context(closing(self._read(wanted)))

    def _read(self, wanted: Collection[int] | None) -> Generator[TimedFrame, None, None]:
        info = self.info
        decoded: Iterator[TimedFrame | Lost | None]
        if info.streams:
            decoded = decode_container(info, wanted, self._threads)
        else:
            decoded = decode_images(info, wanted, self._warn_once, self._background)
        count = 0
        lost: list[tuple[int, Lost]] = []  # after how many frames
        end_reason: str | None = None
        try:
            for timed in decoded:
                if isinstance(timed, Lost):
                    if not self._allow_truncated:
                        raise UserError(self._truncated(count, timed.reason))
                    lost.append((count, timed))
                    continue
                count += 1
                if timed is None:
                    continue
                height, width = timed.frame.shape[:2]
                if (width, height) != (info.width, info.height):
                    raise UserError(
                        f"{info.path}: frame {count} is {width}x{height} "
                        f"in a clip of {info.width}x{info.height}; re-encode it at one size first"
                    )
                yield timed
        except TruncatedError as error:
            if not self._allow_truncated:
                raise UserError(self._truncated(count, str(error))) from error
            end_reason = str(error)
        self._warn(count, lost, end_reason)

    def _warn(self, count: int, lost: list[tuple[int, Lost]], end_reason: str | None) -> None:
        """Warn, once, of frames that were left out between and after the `count` frames."""
        between = sum(frames.num_frames for after, frames in lost if after < count)
        texts = []
        if between:
            are = "frame is" if between == 1 else "frames are"
            texts.append(f"{between} damaged {are} left out, the first after frame {lost[0][0]}")
        if end_reason is None and lost and lost[-1][0] == count:
            end_reason = lost[-1][1].reason
        if end_reason is not None:
            texts.append(f"ends after frame {count} ({end_reason})")
        if texts:
            self._warn_once(", and ".join(texts))

    def _warn_once(self, text: str) -> None:
        """Warn of the clip, but only once however often it is read."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"{self.info.path}: {text}", stacklevel=2)

    def _truncated(self, count: int, reason: str) -> str:
        return f"{self.info.path}: is truncated after frame {count} ({reason}); {_REMEDY}"
