"""Video in and out: upright RGB frames with their times, streamed, so that an edit is its source's twin.

`probe` says what a clip is, `VideoReader` yields its frames, `VideoWriter` writes their edits with the
source's times, colours and sound. Nothing here holds a whole clip, and nothing here needs torch.
"""

from rvedit.io.video.clip import Frame, TimedFrame, VideoInfo, side_by_side
from rvedit.io.video.reader import IMAGE_SUFFIXES, VideoReader, probe
from rvedit.io.video.writer import OUTPUT_SUFFIXES, VideoWriter, temporary_sibling, write_clip, write_like

__all__ = [
    "IMAGE_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "Frame",
    "TimedFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "probe",
    "side_by_side",
    "temporary_sibling",
    "write_clip",
    "write_like",
]
