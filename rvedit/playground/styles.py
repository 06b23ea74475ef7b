"""Styles: exact, deterministic functions of a clip's pixels, at any size.

The target of a style edit is known for every clip, drawn or filmed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rvedit.io.errors import UserError
from rvedit.io.video.clip import Frames

Array = NDArray[np.float32]


def stylize(frames: Frames, style: str, first_frame: int = 0) -> Frames:
    """Return a clip (t, h, w, 3) in one of `grammar.STYLES`; `first_frame` is the number of its first frame.

    Raises UserError if the style is unknown.
    """
    x = frames.astype(np.float32)
    if style in _PHOTOMETRIC:
        x = _PHOTOMETRIC[style](x)
    elif style in _SPATIAL:
        x = _SPATIAL[style](x, first_frame)
    else:
        raise UserError(f"style is {style!r}: choose one of {', '.join((*_PHOTOMETRIC, *_SPATIAL))}")
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


# --- functions of each pixel's color: (..., 3) in [0, 255] -> (..., 3), unclipped -----------------------


def _rgb(*values: float) -> Array:
    return np.array(values, np.float32)


def _luma(x: Array) -> Array:
    # Not a matrix product, whose rounding depends on the array's shape and on the machine.
    red, green, blue = _rgb(0.299, 0.587, 0.114)
    return np.asarray(red * x[..., 0:1] + green * x[..., 1:2] + blue * x[..., 2:3])


def _saturate(x: Array, amount: float) -> Array:
    """Scale the difference from gray."""
    luma = _luma(x)
    return luma + np.float32(amount) * (x - luma)


_PHOTOMETRIC: dict[str, Callable[[Array], Array]] = {
    "black and white": lambda x: np.repeat(_luma(x), 3, axis=-1),
    "sepia": lambda x: _luma(x) * _rgb(1.05, 0.85, 0.6) + _rgb(20, 8, 0),
    "night": lambda x: x * _rgb(0.22, 0.28, 0.5) + _rgb(4, 8, 28),
    "sunset": lambda x: x * _rgb(0.85, 0.55, 0.35) + _rgb(60, 18, 10),
    "inverted": lambda x: 255 - x,
    "warm": lambda x: x * _rgb(1.1, 1.0, 0.75) + _rgb(10, 2, 0),
    "cold": lambda x: x * _rgb(0.75, 0.95, 1.1) + _rgb(0, 2, 12),
    "vintage": lambda x: _saturate(x, 0.5) * _rgb(0.85, 0.78, 0.62) + _rgb(40, 30, 34),
    "faded": lambda x: _saturate(x, 0.7) * np.float32(0.55) + 90,
    "high contrast": lambda x: np.float32(1.6) * (x - 128) + 128,
    "brighter": lambda x: x * np.float32(1.4) + 12,
    "darker": lambda x: x * np.float32(0.55),
    "more colorful": lambda x: _saturate(x, 1.8),
    "less colorful": lambda x: _saturate(x, 0.35),
    "posterized": lambda x: np.minimum(np.floor(x / 64), 3) * 85,
}
PHOTOMETRIC = tuple(_PHOTOMETRIC)
"""Styles that map each pixel's color to a color."""


# --- functions of whole frames: (t, h, w, 3), number of the first frame -> (t, h, w, 3) -----------------


def _pixelate(x: Array, first_frame: int, blocks: int = 16, step: int = 64) -> Array:
    """Average over about `blocks` square blocks along the short side; round colors to multiples of `step`."""
    height, width = x.shape[1:3]
    block = max(1, min(height, width) // blocks)
    rows, columns = (np.arange(n) // block for n in (height, width))
    coarse = np.add.reduceat(
        np.add.reduceat(x, np.arange(0, height, block), 1), np.arange(0, width, block), 2
    )
    area = np.outer(np.bincount(rows), np.bincount(columns))[None, :, :, None]
    quantized = np.round(coarse / area / step) * step
    return np.asarray(quantized[:, rows][:, :, columns], np.float32)


def _blur(x: Array, sigma: float) -> Array:
    """Blur frames (t, h, w) or (t, h, w, 3) by a Gaussian; `sigma` is a share of the short side."""
    blur = ImageFilter.GaussianBlur(sigma * min(x.shape[1:3]))
    images = (Image.fromarray((np.clip(frame, 0, 255) + 0.5).astype(np.uint8)) for frame in x)
    return np.stack([np.asarray(image.filter(blur), np.float32) for image in images])


def _sketch(x: Array, first_frame: int) -> Array:
    """Divide the luma by its blur, which leaves dark lines on white paper."""
    luma = _luma(x)[..., 0]
    lines = 255 * (luma + 8) / (_blur(luma, 0.02) + 8)
    return np.repeat(np.minimum(255 - 1.6 * (255 - lines), 250)[..., None], 3, axis=-1)


def _fog(x: Array, first_frame: int) -> Array:
    """Mix with light gray; the fog is denser at the top, and its banks drift."""
    t = first_frame + np.arange(len(x), dtype=np.float32)[:, None, None]
    height, width = x.shape[1:3]
    v = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    u = (np.arange(width, dtype=np.float32) + 0.5) / width
    banks = np.sin(7 * u + 3 * v + 0.05 * t) * np.sin(9 * v - 4 * u + 0.03 * t)
    density = 0.78 - 0.3 * v + 0.1 * banks
    return np.asarray(x + density[..., None] * (_rgb(212, 216, 220) - x), np.float32)


def _snow(x: Array, first_frame: int) -> Array:
    """Let flakes fall through a pale and cold picture."""
    pale = _saturate(x, 0.6) * _rgb(0.78, 0.8, 0.82) + _rgb(44, 48, 54)
    return _cover(pale, first_frame, _flakes, _rgb(250, 250, 252))


def _rain(x: Array, first_frame: int) -> Array:
    """Let streaks of rain fall through a dull and dark picture."""
    dull = _saturate(x, 0.45) * _rgb(0.56, 0.6, 0.64) + _rgb(10, 14, 18)
    return _cover(dull, first_frame, _streaks, _rgb(205, 212, 222))


def _cover(x: Array, first_frame: int, pattern: Callable[[int, int, int], Array], color: Array) -> Array:
    """Mix each frame with a color by the pattern (h, w) of its number, height and width."""
    masks = np.stack([pattern(first_frame + i, *x.shape[1:3]) for i in range(len(x))])[..., None]
    return x + masks * (color - x)


@lru_cache(maxsize=64)
def _flakes(frame: int, height: int, width: int) -> Array:
    """Return the cover by snowflakes, (h, w) in [0, 1]: discs that fall and sway."""
    rng = np.random.default_rng(11)
    short = min(height, width)
    depth, phase = rng.uniform(0.4, 1, 160), rng.uniform(0, 2 * np.pi, 160)
    place = rng.random((160, 2))
    y = (place[:, 1] + 0.045 * depth * frame) % 1.1 - 0.05
    x = (place[:, 0] + 0.015 * np.sin(phase + 0.3 * frame)) % 1.0
    radius = 0.011 * depth * short
    x, y = x * width, y * height
    boxes = np.stack([x - radius, y - radius, x + radius, y + radius], axis=1)
    return _paint(boxes, "ellipse", height, width, 0.95)


@lru_cache(maxsize=64)
def _streaks(frame: int, height: int, width: int) -> Array:
    """Return the cover by rain, (h, w) in [0, 1]: slanted lines at other places in each frame."""
    rng = np.random.default_rng(13)
    place, speed = rng.random((140, 2)), rng.uniform(0.16, 0.26, 140)
    y = (place[:, 1] + speed * frame) % 1.3 - 0.15
    x = (place[:, 0] - 0.2 * speed * frame) % 1.0
    length = 0.5 * speed
    ends = np.stack([x * width, y * height, (x + 0.2 * length) * width, (y - length) * height], axis=1)
    return _paint(ends, "line", height, width, 0.5)


def _paint(boxes: NDArray[np.float64], shape: str, height: int, width: int, opacity: float) -> Array:
    """Return the cover (h, w) by ellipses or lines, drawn four times as fine."""
    canvas = Image.new("L", (4 * width, 4 * height), 0)
    draw = ImageDraw.Draw(canvas)
    for fine in (4 * boxes).tolist():
        if shape == "ellipse":
            draw.ellipse(fine, fill=255)
        else:
            draw.line(fine, fill=255, width=max(1, round(0.028 * min(height, width))))
    return np.asarray(canvas.reduce(4), np.float32) * np.float32(opacity / 255)


_SPATIAL: dict[str, Callable[[Array, int], Array]] = {
    "pixel art": _pixelate,
    "pencil sketch": _sketch,
    "blurred": lambda x, first_frame: _blur(x, 0.035),
    "foggy": _fog,
    "snowy": _snow,
    "rainy": _rain,
}
