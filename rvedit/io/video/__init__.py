"""Video input and output: upright RGB frames with their times, streamed.

`probe` describes a clip, `VideoReader` yields its frames, and `VideoWriter` writes edited frames with the
source's times, color tags and audio. Nothing here holds a whole clip in memory or needs torch.
"""

from rvedit.io.video.clip import Frame, TimedFrame, VideoInfo, evenly_spaced, side_by_side
from rvedit.io.video.images import IMAGE_SUFFIXES, STILL_SUFFIXES
from rvedit.io.video.losses import holds_sound, losses
from rvedit.io.video.reader import VideoReader, probe, read_image
from rvedit.io.video.report import clip_report, report_lines
from rvedit.io.video.times import FileFrames, frame_times
from rvedit.io.video.writer import (
    OUTPUT_SUFFIXES,
    PICTURE_SUFFIXES,
    VideoWriter,
    check_target,
    default_suffix,
    write_clip,
    write_like,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "PICTURE_SUFFIXES",
    "STILL_SUFFIXES",
    "FileFrames",
    "Frame",
    "TimedFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "check_target",
    "clip_report",
    "default_suffix",
    "evenly_spaced",
    "frame_times",
    "holds_sound",
    "losses",
    "probe",
    "read_image",
    "report_lines",
    "side_by_side",
    "write_clip",
    "write_like",
]
