"""Probing: what a clip really is, and whether two clips make a pair.

Clips are measured one by one, each file once however many rows name it; the rule for pairs is applied to
the measurements, so that a rule can change without a clip being read again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import av
from av.error import FFmpegError

from rvedit.io.errors import UserError
from rvedit.io.video import VideoInfo, VideoReader, probe

Level = Literal["header", "decode", "full"]
LEVELS: tuple[Level, ...] = ("header", "decode", "full")
MAX_SURPLUS_FRAMES = 3
"""An editor whose VAE works on 4k+1 frames drops up to three."""
MAX_ASPECT_ERROR = 0.01
"""Relative difference of the aspect ratios: what rounding to a multiple of 8 or 16 pixels makes of 720p."""


@dataclass(frozen=True)
class Measurement:
    """One clip as displayed: pixels, frames, frames per second; or what is wrong with it."""

    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class PairRule:
    """When a source and a target make a pair.

    Each clip is later scaled to cover the training size and cropped at the centre: both frames then show
    the same part of the picture where the aspect ratios agree within 1%. Lengths agree where they differ
    by at most three frames; the longer clip counts as cut at its end.
    """

    min_frames: int = 81

    def judge(self, source: Measurement, target: Measurement) -> tuple[str, str] | Measurement:
        """What both clips can give (the smaller size, the shorter length, the source's fps).

        Or the reason why they make no pair, and its details.
        """
        for side, clip in (("source", source), ("target", target)):
            if clip.error:
                return f"{side} does not decode", clip.error
        ratio = source.width * target.height / (source.height * target.width)
        if abs(ratio - 1) > MAX_ASPECT_ERROR:
            return (
                "sizes differ",
                f"source {source.width}x{source.height}, target {target.width}x{target.height}",
            )
        if abs(source.num_frames - target.num_frames) > MAX_SURPLUS_FRAMES:
            return "lengths differ", f"source {source.num_frames} frames, target {target.num_frames}"
        num_frames = min(source.num_frames, target.num_frames)
        if num_frames < self.min_frames:
            return "too short", f"{num_frames} frames of at least {self.min_frames}"
        smaller = min(source, target, key=lambda clip: clip.width * clip.height)
        return Measurement(smaller.width, smaller.height, num_frames, source.fps)


def probe_clip(path: str, level: Level) -> Measurement:
    """Measure a clip; what is wrong with it is part of the answer, never an exception.

    `header` reads every packet and decodes the first frame; `decode` also decodes to the last frame from
    the key frame before it; `full` decodes and converts every frame.
    """
    try:
        info = probe(path)
        if level == "full" or info.kind != "video":
            for _ in VideoReader(path):
                pass
        elif info.truncated:
            return Measurement(error="its data end early or are damaged")
        elif level == "decode":
            _decode_the_end(info)
    except (UserError, FFmpegError, OSError, ValueError) as error:
        return Measurement(error=str(error).removeprefix(f"{path}: "))
    return Measurement(info.width, info.height, info.num_frames, float(info.frame_rate))


def probe_job(job: dict[str, Any]) -> dict[str, Any]:
    """The per-clip function of the process pool and of Ray: a job (id, path, level) with its measurement."""
    return {**job, **asdict(probe_clip(job["path"], job["level"]))}


def _decode_the_end(info: VideoInfo) -> None:
    """Decode from the last key frame to the end; raises ValueError where the last frame is not reached."""
    with av.open(f"file:{Path(info.path)}") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # one process per core does the rest
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
