"""Reading clips: anything PyAV decodes, a still image, or a folder of images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from rvedit.io.errors import UserError
from rvedit.io.video.clip import FULL, RGB, SCALING, UNSPECIFIED, Frame, TimedFrame, VideoInfo
from rvedit.io.video.orientation import Turn, orientation

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_FOLDER_RATE = Fraction(24)
_Decoded = Iterator[TimedFrame | None]


class _BrokenOffError(Exception):
    """The data end, or stop decoding, before the clip does; the message says how."""


def probe(path: str | Path) -> VideoInfo:
    """Describe a clip; reads every packet but decodes one frame.

    Raises UserError for a missing file, one that is no video, or one without a decodable frame. A file
    that breaks off later is described as far as it goes, with `truncated` set.
    """
    path = Path(path)
    if path.is_dir():
        files = _pictures(path)
        if not files:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{path}: no images in this folder; name one with frames, {kinds}")
        return _probe_pictures(path, files)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _probe_pictures(path, [path])
    return _probe_container(path)


class VideoReader:
    """A clip's frames in display order, upright, with strictly increasing times; streamed, not held.

    Each iteration starts anew, also beside another one. Raises UserError, on opening or at the break, for a
    clip that breaks off; with `allow_truncated` it warns there instead, and the iteration ends. `threads`: 0
    for as many as the decoder likes; 1 is best where several clips are read at once.
    """

    def __init__(self, path: str | Path, *, allow_truncated: bool = False, threads: int = 0) -> None:
        self.info = probe(path)
        self._allow_truncated = allow_truncated
        self._threads = threads
        self._open: list[Generator[TimedFrame, None, None]] = []
        if self.info.truncated and not allow_truncated:
            # Said before the first frame is decoded: nobody should wait for an edit that cannot finish.
            raise UserError(self._broken_off(self.info.num_frames, "its data end early or are damaged"))

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for frames in self._open:
            frames.close()

    def __iter__(self) -> Iterator[TimedFrame]:
        return self._opened(None)

    def pick(self, wanted: Collection[int]) -> Iterator[TimedFrame]:
        """The frames with these numbers, from 0; all are decoded, but only these are made into pictures."""
        return self._opened(wanted)

    def _opened(self, wanted: Collection[int] | None) -> Iterator[TimedFrame]:
        frames = self._read(wanted)
        self._open.append(frames)
        return frames

    def _read(self, wanted: Collection[int] | None) -> Generator[TimedFrame, None, None]:
        info = self.info
        is_video = info.kind == "video"
        decoded = (
            _decode_container(info, wanted, self._threads) if is_video else _decode_pictures(info, wanted)
        )
        count = 0
        try:
            for timed in decoded:
                if timed is None:
                    count += 1
                    continue
                height, width = timed.frame.shape[:2]
                if (width, height) != (info.width, info.height):
                    raise UserError(
                        f"{info.path}: frame {count + 1} is {width}x{height} "
                        f"in a clip of {info.width}x{info.height}; re-encode it at one size first"
                    )
                yield timed
                count += 1
        except _BrokenOffError as broken:
            if not self._allow_truncated:
                raise UserError(self._broken_off(count, str(broken))) from broken
            warnings.warn(f"{info.path}: ends after frame {count} ({broken})", stacklevel=3)

    def _broken_off(self, count: int, reason: str) -> str:
        return (
            f"{self.info.path}: breaks off after frame {count} ({reason}); "
            "pass --allow-truncated to edit what decodes, or get a whole copy"
        )


# Containers


def _open(path: Path) -> InputContainer:
    try:
        # "file:" keeps a name with a colon, or one like "-", from being taken for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError as error:
        raise UserError(
            f"{path}: not a video that can be read ({error.strerror}); "
            "it is damaged, cut short before its index, or of another kind"
        ) from error
    if container.format.name == "tty":  # FFmpeg would gladly play a text file as a terminal's screen
        container.close()
        raise UserError(f"{path}: a text file, not a video; name a video, an image or a folder of images")
    return container


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # a song's cover is no video
            if stream.codec_context is None:
                raise UserError(f"{path}: no decoder for its video; convert it to H.264 first")
            return stream
    raise UserError(f"{path}: has no video stream; name a file with pictures, not only sound")


def _probe_container(path: Path) -> VideoInfo:
    with _open(path) as container:
        video = _video_stream(container, path)
        video.codec_context.thread_count = 1  # no more than one frame is decoded
        first: VideoFrame | None = None
        num_packets, num_frames, truncated = 0, 0, False
        start: int | None = None
        end = furthest = Fraction(0)  # seconds: of the pictures, and of any stream
        frame_rate = video.average_rate or video.guessed_rate or _FOLDER_RATE
        try:
            for packet in container.demux():  # every stream, as the declared length is the longest one's
                is_video = packet.stream_index == video.index
                if is_video and packet.is_corrupt:
                    truncated = True
                    break
                if is_video and first is None:
                    first = next(iter(video.decode(packet)), None)
                num_packets += is_video and packet.size > 0
                if not packet.size or packet.is_discard:
                    continue
                num_frames += is_video
                time = packet.dts if packet.pts is None else packet.pts
                if time is None:  # in a bare stream
                    continue
                packet_end = (time + (packet.duration or 0)) * packet.time_base
                furthest = max(furthest, packet_end)
                if is_video:
                    start = time if start is None else min(start, time)
                    end = max(end, packet_end if packet.duration else packet_end + 1 / frame_rate)
        except FFmpegError:
            truncated = True
        if first is None or video.time_base is None:
            raise UserError(f"{path}: no frame of it decodes; it is empty or damaged, get another copy")

        begin = (start or 0) * video.time_base
        end = end if start is not None else num_frames / frame_rate
        if container.format.name.startswith("mov"):  # lists every packet, while its durations ignore B-frames
            truncated = truncated or num_packets < len(video.index_entries)
        else:
            # Muxers round and pad what they declare; a real loss that small shows in a corrupt packet.
            slack = max(2 / frame_rate, Fraction(1, 4))
            truncated = truncated or _missing(container, video, begin, end, furthest) > slack

        swaps_axes = orientation(first)[0]
        width, height = (first.height, first.width) if swaps_axes else (first.width, first.height)
        aspect = video.sample_aspect_ratio or None
        context, is_rgb = video.codec_context, first.format.is_rgb or first.format.has_palette
        is_full = is_rgb or first.format.name.startswith("yuvj")
        return VideoInfo(
            path=path,
            kind="video",
            width=width,
            height=height,
            num_frames=num_frames,
            frame_rate=frame_rate,
            time_base=video.time_base,
            duration=float(end - begin),
            color_range=FULL if is_full else int(first.color_range),
            colorspace=RGB if is_rgb else int(first.colorspace),
            color_primaries=int(context.color_primaries),
            color_trc=int(context.color_trc),
            pix_fmt=first.format.name,
            pixel_aspect=1 / aspect if aspect and swaps_axes else aspect,
            has_audio=bool(container.streams.audio),
            truncated=truncated,
        )


def _missing(
    container: InputContainer, video: VideoStream, begin: Fraction, end: Fraction, furthest: Fraction
) -> Fraction:
    """The seconds that the container declares but does not hold, of its pictures or of its longest stream."""
    if video.duration is not None and video.time_base is not None:
        return video.duration * video.time_base - (end - begin)
    tag = _seconds(video.metadata.get("DURATION", ""))
    if tag is not None:  # Matroska's, which counts from zero
        return tag - end
    return Fraction(container.duration or 0, 1_000_000) - max(furthest, end)


def _decode_container(info: VideoInfo, wanted: Collection[int] | None, threads: int) -> _Decoded:
    """Yield the frames, and none for one that is not wanted.

    Raises _BrokenOffError after the last intact one of a clip that breaks off.
    """
    with _open(info.path) as container:
        video = _video_stream(container, info.path)
        video.codec_context.thread_count = threads
        convert = partial(VideoReformatter().reformat, threads=threads)
        usual = max(1, round(1 / (info.frame_rate * info.time_base)))  # ticks
        pts: int | None = None
        duration = usual
        turn: Turn | None = None
        for index, decoded in enumerate(_decoded(container, video)):
            # Asked once: PyAV's side data and its frame hold each other, and 4K frames would pile up by the
            # hundred before Python's collector of such circles happens to run.
            turn = orientation(decoded) if turn is None else turn
            # A file may leave times out or repeat them; a writer needs them to increase.
            due = 0 if pts is None else pts + duration
            stated = due if decoded.pts is None else decoded.pts
            pts = stated if pts is None or stated > pts else pts + 1
            duration = decoded.duration or usual
            if wanted is None or index in wanted:
                yield TimedFrame(_to_rgb(decoded, info, turn, convert), pts, decoded.duration or None)
            else:
                yield None
        if info.truncated:
            raise _BrokenOffError("its data end early")


def _decoded(container: InputContainer, video: VideoStream) -> Iterator[VideoFrame]:
    """Yield the decoder's frames; without frame threads, which would tell of damage out of turn."""
    due = latest = -1  # the last times shown by the packets and by the frames
    for packet in container.demux(video):
        problem = "its data are cut off" if packet.is_corrupt else None
        frames: list[VideoFrame] = []
        if problem is None:
            try:
                frames = video.decode(packet)
            except FFmpegError as error:
                problem = f"the next one does not decode: {error.strerror}"
        if problem is not None:
            yield from _drained(video, packet.pts)
            raise _BrokenOffError(problem)
        if packet.size and packet.pts is not None and not packet.is_discard:
            due = max(due, packet.pts)
        for frame in frames:
            if frame.is_corrupt:
                raise _BrokenOffError("the next one is damaged")
            latest = max(latest, due if frame.pts is None else frame.pts)
            yield frame
    if latest < due:
        raise _BrokenOffError("its last frames do not decode")


def _drained(video: VideoStream, before: int | None) -> Iterator[VideoFrame]:
    """Yield the intact frames due before the break that the decoder still holds."""
    with suppress(FFmpegError, EOFError):
        for frame in video.decode(None):
            if frame.is_corrupt or before is None or frame.pts is None or frame.pts >= before:
                return
            yield frame


def _to_rgb(decoded: VideoFrame, info: VideoInfo, turn: Turn, convert: Callable[..., VideoFrame]) -> Frame:
    rgb = convert(
        decoded,
        format="rgb24",
        src_colorspace=info.matrix,
        dst_colorspace=info.matrix,
        src_color_range=info.color_range,
        dst_color_range=FULL,
        interpolation=SCALING,
    )
    frame: Frame = np.asarray(rgb.to_ndarray(), np.uint8)
    swaps_axes, flips_x, flips_y = turn
    if swaps_axes:
        frame = frame.transpose(1, 0, 2)
    return np.ascontiguousarray(frame[:: -1 if flips_y else 1, :: -1 if flips_x else 1])


def _seconds(clock: str) -> Fraction | None:
    """The seconds in Matroska's "00:01:02.500000000", or None."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", clock.strip())
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])


# Still images and folders of them


def _pictures(path: Path) -> list[Path]:
    """A folder's images, frame2 before frame10; hidden files are not frames."""
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]
    return sorted(files, key=lambda file: (_natural(file.name), file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that compares runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _probe_pictures(path: Path, files: list[Path]) -> VideoInfo:
    sizes = [_picture_size(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(
                f"{file}: is {size[0]}x{size[1]} but {files[0].name} is {sizes[0][0]}x{sizes[0][1]}; "
                "make all images of the folder one size"
            )
    return VideoInfo(
        path=path,
        kind="folder" if path.is_dir() else "image",
        width=sizes[0][0],
        height=sizes[0][1],
        num_frames=len(files),
        frame_rate=_FOLDER_RATE,
        time_base=1 / _FOLDER_RATE,
        duration=float(len(files) / _FOLDER_RATE),
        color_range=FULL,
        colorspace=RGB,
        color_primaries=UNSPECIFIED,
        color_trc=UNSPECIFIED,
        pix_fmt="rgb24",
    )


def _open_picture(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{file}: has more than {most // 10**6} million pixels: make it smaller") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file}: not an image that can be read; replace or remove it") from error
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        image.close()
        raise UserError(f"{file}: an animated image; convert it to .gif or .mp4 first")
    return image


def _picture_size(file: Path) -> tuple[int, int]:
    """Width and height as displayed, from the header alone."""
    with _open_picture(file) as image:
        is_on_its_side = image.getexif().get(0x0112, 1) >= 5  # Exif's orientation tag
        return image.size[::-1] if is_on_its_side else image.size


def _decode_pictures(info: VideoInfo, wanted: Collection[int] | None) -> _Decoded:
    files = _pictures(info.path) if info.kind == "folder" else [info.path]
    for index, file in enumerate(files):
        if wanted is not None and index not in wanted:
            yield None
            continue
        with _open_picture(file) as image:
            try:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
                    upright = Image.fromarray((np.asarray(upright, np.uint16) >> 8).astype(np.uint8))
                frame = np.array(upright.convert("RGB"))
            except OSError as error:
                raise _BrokenOffError(f"{file.name} is damaged") from error
        yield TimedFrame(frame, index, 1)
