"""Describe and decode still images and folders of them, by Pillow."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps

from rvedit.io.errors import UserError
from rvedit.io.video.clip import DEFAULT_RATE, FULL, RGB, TimedFrame, TruncatedError, VideoInfo
from rvedit.io.video.colors import is_transparent, to_rgb

# What Pillow raises for damaged files.
_DAMAGE = (EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error)
_COMMON = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
IMAGE_SUFFIXES = _COMMON | {".avif", ".jfif", ".jp2", ".pgm", ".ppm", ".tga"}
"""Suffixes of images that Pillow reads."""
STILL_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif"}
"""Suffixes of all images; the others are read as videos of one frame."""


_UNREADABLE = "not an image that can be read; replace or remove it"


def _list_images(path: Path) -> list[Path]:
    """Return an image, or a folder's images, with frame2 before frame10 and without hidden files."""
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]
    return sorted(files, key=lambda file: (_natural_key(file.name), file.name))


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sorting key that compares runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def probe_images(path: Path) -> VideoInfo:
    """Describe an image, or a folder of images of one size, from their headers. Raises UserError."""
    files = _list_images(path)
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{path}: no images in this folder; give one with frames as {suffixes}")
    width, height = _image_size(files[0])
    for file in files[1:]:
        w, h = _image_size(file)
        if (w, h) != (width, height):
            raise UserError(
                f"{file}: is {w}x{h} but {files[0].name} is {width}x{height}; "
                "resize all images of the folder to one size"
            )
    return VideoInfo(
        path=path,
        kind="folder" if path.is_dir() else "image",
        width=width,
        height=height,
        num_frames=len(files),
        frame_rate=DEFAULT_RATE,
        time_base=1 / DEFAULT_RATE,
        duration=float(len(files) / DEFAULT_RATE),
        color_range=FULL,
        colorspace=RGB,
        pix_fmt="rgb24",
        has_alpha=_has_alpha(files[0]),
    )


def _open_image(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{file}: has more than {limit // 10**6} million pixels: make it smaller") from None
    except _DAMAGE as error:
        raise UserError(f"{file}: {_UNREADABLE}") from error
    if image.format in ("AVIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
        image.close()
        raise UserError(f"{file}: an animated image; convert it to .gif or .mp4 first")
    return image


def _image_size(file: Path) -> tuple[int, int]:
    """Return width and height as displayed, from the header alone."""
    with _open_image(file) as image:
        try:
            swaps_axes = image.getexif().get(0x0112, 1) >= 5  # Exif's orientation tag
        except _DAMAGE as error:
            raise UserError(f"{file}: {_UNREADABLE}") from error
        return image.size[::-1] if swaps_axes else image.size


def _has_alpha(file: Path) -> bool:
    with _open_image(file) as image, suppress(*_DAMAGE):  # the damage is told when the file is decoded
        return is_transparent(image)
    return False


def decode_images(
    info: VideoInfo, wanted: Collection[int] | None, warn: Callable[[str], None], background: str = "black"
) -> Iterator[TimedFrame | None]:
    """Yield the wanted frames, and None for each other one. Raises TruncatedError at a damaged file.

    `warn` receives what is said of the clip: the same text for each file.
    """
    for index, file in enumerate(_list_images(info.path)):
        if wanted is not None and index not in wanted:
            yield None
            continue
        with _open_image(file) as image:
            try:
                upright = ImageOps.exif_transpose(image)
            except _DAMAGE as error:
                raise TruncatedError(f"{file.name} is damaged") from error
        try:
            yield TimedFrame(to_rgb(upright, warn, background), index, 1)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
