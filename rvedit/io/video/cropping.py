"""Cropping that a container asks for: PixelCrop of Matroska, clean aperture of MP4 and MOV.

FFmpeg's decoders apply the cropping of H.264 and HEVC streams, but leave that of containers to players.
"""

from __future__ import annotations

import re
import threading
from typing import Any

import av.logging
from av.video.stream import VideoStream

from rvedit.io.video.clip import NO_CROP, Crop

_LOCK = threading.Lock()  # the level is that of the process


def container_crop(container: Any, video: VideoStream) -> Crop:
    """Return the cropping of a stream of an `InputContainer`; none where it would leave nothing."""
    with _LOCK:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)  # otherwise the description is empty
        description = container.dumps_format()  # not in PyAV's types; it shows cropping nowhere else
        av.logging.set_level(level)
    own = re.search(rf"^  Stream #0:{video.index}\b.*?(?=^  \S|\Z)", description, re.DOTALL | re.MULTILINE)
    sides = own and re.search(r"^ {6}Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", own[0], re.MULTILINE)
    if not sides:
        return NO_CROP
    crop = Crop(*map(int, sides.groups()))
    fits = crop.left + crop.right < video.width and crop.top + crop.bottom < video.height
    return crop if fits else NO_CROP
