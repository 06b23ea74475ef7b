"""Colors of pictures of any mode, as sRGB with 8 bits per channel."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from rvedit.io.errors import UserError
from rvedit.io.video.clip import OVER_BLACK, Frame

# What may be white, where a picture's numbers have 32 bits and no range of their own.
_WHITES = {"F": (1, 255, 65535), "I": (255, 65535)}


def to_rgb(image: Image.Image, warn: Callable[[str], None], background: str = "black") -> Frame:
    """Return a picture's pixels (h w 3) in sRGB, with transparent parts over a color.

    `warn` receives one line about a color profile that is ignored, and one about transparent parts. Raises
    UserError for numbers of an unknown range.
    """
    colors = _to_srgb(_to_8_bits(image, warn), image.info.get("icc_profile"), warn)
    if is_transparent(image):
        warn(OVER_BLACK)
        alpha = image.convert("RGBA").getchannel("A")
        colors = Image.composite(colors, Image.new("RGB", colors.size, background), alpha)
    return np.array(colors)


def is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is transparent."""
    return image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255


def _to_8_bits(image: Image.Image, warn: Callable[[str], None]) -> Image.Image:
    """Return a picture as L, RGB, CMYK or LAB. Raises UserError for numbers of an unknown range."""
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")  # Pillow warns where transparency is dropped at once
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("L" if image.mode in ("1", "LA") else "RGB")
    # Pillow itself clips deeper pictures.
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    usual = 1 if image.mode == "F" else 65535
    white = next((white for white in _WHITES.get(image.mode, (65535,)) if high <= white), None)
    if white is None or low < 0:
        raise UserError(f"its values run from {low:g} to {high:g}: save it with 8 or 16 bits per channel")
    if white != usual:
        warn(f"its values are read as those of a picture in which {white} is white, not {usual}")
    return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, warn: Callable[[str], None]) -> Image.Image:
    """Return a picture (L, RGB, CMYK or LAB) in sRGB, by its ICC profile."""
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
        else:
            return image.convert("RGB")
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.buildTransform(source, srgb, image.mode, "RGB").apply(image)
    except (OSError, ImageCms.PyCMSError):
        warn("its color profile is damaged or of another kind, and is ignored")
        return image.convert("RGB")
