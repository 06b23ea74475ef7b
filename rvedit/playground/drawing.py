"""Flat drawings of a scene: the pictures at realism 0."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rvedit.io.video.clip import Frame
from rvedit.playground import grammar
from rvedit.playground.scene import Scene, Thing

SUPERSAMPLING = 2


def draw_frame(scene: Scene, frame: int, height: int, width: int) -> Frame:
    """Return a frame as flat drawings: uint8, shape (height, width, 3)."""
    h, w = height * SUPERSAMPLING, width * SUPERSAMPLING
    column = sky_colors(scene, np.linspace(0, 1 / scene.horizon, h, dtype=np.float32))
    pixels = np.broadcast_to(column[:, None], (h, w, 3))
    canvas = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    _, _, hills, ground = grammar.BACKGROUNDS[scene.background]
    x = np.linspace(0, 1, 17)
    outline = [(float(a * w), float(b * h)) for a, b in zip(x, ridge(scene, x, frame), strict=True)]
    draw.polygon([*outline, (w, h), (0, h)], fill=hills)
    draw.rectangle((0, scene.horizon * h, w, h), fill=ground)
    for thing in scene.things:
        scale = thing.radius * min(h, w)
        for kind, fill, points in primitives(thing, scale, center(thing, frame) * [w, h]):
            draw_primitive(draw, kind, fill, points)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def sky_colors(scene: Scene, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sky's colors (n, 3) at depths (n,): 0 at the top of the frame, 1 at the horizon."""
    top, bottom, _, _ = (np.array(c, np.float32) for c in grammar.BACKGROUNDS[scene.background])
    return np.asarray(top + (bottom - top) * np.minimum(depth, 1)[:, None])


def ridge(scene: Scene, x: NDArray[np.float64], frame: int) -> NDArray[np.float64]:
    """Return the height of the hills at places x (n,), both in fractions of the frame.

    The hills repeat after 2/3 of the frame's width and move by `pan` of that per frame.
    """
    shift = scene.hills_phase + 2 * math.pi * scene.pan * frame
    return np.asarray(scene.horizon - 0.07 - 0.05 * np.sin(2 * math.pi * 1.5 * x + shift))


def center(thing: Thing, frame: int) -> NDArray[np.float64]:
    """Return where a thing is, (x, y) in fractions of the frame.

    The drift is a triangle wave, which keeps things in the frame of a long clip.
    """
    travel = thing.drift * frame
    swing = 0.12 * (2 / math.pi) * math.asin(math.sin(travel / 0.12 * math.pi / 2))
    return np.array([thing.x + swing, thing.y + thing.bob * math.sin(thing.phase + 0.5 * frame)])


def primitives(
    thing: Thing, scale: float, place: NDArray[np.float64]
) -> Iterator[tuple[str, grammar.RGB, NDArray[np.float64]]]:
    """Yield (kind, color, points (n, 2) in pixels) of each part of a thing.

    `scale` is the thing's radius and `place` its center (x, y), both in pixels.
    """
    mirror = -1.0 if thing.drift < 0 else 1.0
    body = np.array(thing.rgb, np.float32)
    paints = {"body": body, "dark": body * 0.62, "light": body * 0.45 + 255 * 0.55}
    for kind, paint, coordinates in grammar.DRAWINGS[thing.noun]:
        r, g, b = (int(c) for c in paints[paint]) if paint in paints else grammar.PAINTS[paint]
        yield kind, (r, g, b), np.array(coordinates).reshape(-1, 2) * [mirror, 1.0] * scale + place


def draw_primitive(
    draw: ImageDraw.ImageDraw, kind: str, fill: int | grammar.RGB, points: NDArray[np.float64]
) -> None:
    """Draw a part of a thing; an ellipse is given by two corners of its box."""
    if kind == "ellipse":
        draw.ellipse((*points.min(axis=0), *points.max(axis=0)), fill=fill)
    else:
        draw.polygon([(float(a), float(b)) for a, b in points], fill=fill)
