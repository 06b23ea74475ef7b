"""Measure clips, and decide which sources and targets make pairs.

Each file is measured once, however many rows name it; the pair rule uses the measurements, so that it can
change without reading clips again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from av.error import FFmpegError

from rvedit.io.errors import UserError
from rvedit.io.video import VideoInfo, VideoReader, probe
from rvedit.io.video.streams import choose_video, open_container

Level = Literal["header", "decode", "full"]
LEVELS: tuple[Level, ...] = ("header", "decode", "full")
MAX_SURPLUS_FRAMES = 3
"""Allowed difference in length: editors whose VAE needs 4k+1 frames drop up to three."""
MAX_ASPECT_ERROR = 0.01
"""Allowed relative difference of aspect ratios: that of rounding 720p to multiples of 8 or 16 pixels."""
MAX_RATE_ERROR = 0.01
"""Allowed relative difference of frame rates: 30 and 29.97 fps are the same."""


@dataclass(frozen=True)
class Measurement:
    """Size as displayed, number of frames and frame rate of a clip, or what is wrong with it."""

    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    """0 for a folder of images, which has no rate."""
    error: str = ""


def judge_mask(mask: Measurement, pair: Measurement) -> tuple[str, str] | None:
    """Return the reason why a mask does not fit a pair, and details; None if it fits.

    It has one frame for all, or at least as many as the pair.
    """
    if mask.error:
        return "mask does not decode", mask.error
    if abs(mask.width * pair.height / (mask.height * pair.width) - 1) > MAX_ASPECT_ERROR:
        return "mask sizes differ", f"mask {mask.width}x{mask.height}, clips {pair.width}x{pair.height}"
    if 1 < mask.num_frames < pair.num_frames:
        return "mask is too short", f"mask {mask.num_frames} frames, clips {pair.num_frames}"
    return None


def judge_pair(
    source: Measurement, target: Measurement, min_frames: int, same_rate: bool = False
) -> tuple[str, str] | Measurement:
    """Return the pair's smaller size, shorter length and source fps; or the reason of failure and details.

    Training scales each clip to cover the training size and crops it at the center: both clips then show the
    same part of the frame if their aspect ratios agree within 1%. Lengths may differ by three frames; the
    longer clip is cut at its end. With `same_rate`, frame rates must agree within 1%, too.
    """
    for side, clip in (("source", source), ("target", target)):
        if clip.error:
            return f"{side} does not decode", clip.error
    ratio = source.width * target.height / (source.height * target.width)
    if abs(ratio - 1) > MAX_ASPECT_ERROR:
        sizes = f"source {source.width}x{source.height}, target {target.width}x{target.height}"
        return "sizes differ", sizes
    if abs(source.num_frames - target.num_frames) > MAX_SURPLUS_FRAMES:
        return "lengths differ", f"source {source.num_frames} frames, target {target.num_frames}"
    num_frames = min(source.num_frames, target.num_frames)
    rates = [clip.fps for clip in (source, target) if clip.fps]
    if same_rate and num_frames > 1 and max(rates, default=1) > (1 + MAX_RATE_ERROR) * min(rates, default=1):
        return "frame rates differ", f"source {source.fps:g} fps, target {target.fps:g}"
    if num_frames < min_frames:
        return "too short", f"{num_frames} frames of at least {min_frames}"
    smaller = min(source, target, key=lambda clip: clip.width * clip.height)
    return Measurement(smaller.width, smaller.height, num_frames, next(iter(rates), 0.0))


def probe_clip(path: str, level: Level) -> Measurement:
    """Measure a clip; errors are part of the measurement, never raised.

    `header` reads every packet and decodes the first frame; `decode` also decodes to the last frame from
    the key frame before it; `full` decodes and converts every frame.
    """
    try:
        info = probe(path)
        is_joined = len(info.clock.offsets) > 1  # its end is not at its last time
        if level == "full" or info.kind != "video" or is_joined:
            for _ in VideoReader(path):
                pass
        elif info.truncated:
            return Measurement(error="its data end early or are damaged")
        elif level == "decode":
            _decode_end(info)
    except (UserError, FFmpegError, OSError, ValueError) as error:
        return Measurement(error=str(error).removeprefix(f"{path}: "))
    fps = 0.0 if info.kind == "folder" else float(info.frame_rate)
    return Measurement(info.width, info.height, info.num_frames, fps)


def probe_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job (id, path, level) with its measurement; runs in the process pool or on Ray."""
    return {**job, **asdict(probe_clip(job["path"], job["level"]))}


def _decode_end(info: VideoInfo) -> None:
    """Decode from the last key frame to the end; raises ValueError if the last frame is not reached."""
    with open_container(info.path) as container:
        stream = choose_video(container, info.path)
        stream.codec_context.thread_count = 1  # there is one process per core
        if stream.duration:
            container.seek((stream.start_time or 0) + stream.duration, stream=stream)
        last = None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError("a frame near its end is damaged")
            last = frame
        if last is None:
            raise ValueError("its last frame does not decode")
        if last.pts is not None and stream.time_base is not None and stream.duration:
            end = (last.pts - (stream.start_time or 0)) * stream.time_base + 1 / info.frame_rate
            if end < info.duration - 1.5 / info.frame_rate:
                raise ValueError("its last frames do not decode")
