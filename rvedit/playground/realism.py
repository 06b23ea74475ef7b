"""Frames with the statistics of photographs: backdrop, things with shadows, camera and light.

Everything but the things themselves is the same in source and target. Each effect grows with `Scene.realism`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rvedit.io.video.clip import Frame
from rvedit.playground import grammar
from rvedit.playground.backdrop import MARGIN, PERIOD, draw_backdrop
from rvedit.playground.drawing import SUPERSAMPLING, center, draw_primitive, primitives
from rvedit.playground.look import Look, sample_look
from rvedit.playground.scene import Scene, Thing
from rvedit.playground.textures import NUM_TEXTURES, Array, Surfaces, field_size, fractal_fields, shade

_FILTER = Image.Resampling.BICUBIC
_REACH = 1.5
"""Half the side of a sprite, in radii of the thing; room for its shadow."""


def draw_realistic_frame(scene: Scene, frame: int, height: int, width: int) -> Frame:
    """Return a frame of a scene with `realism` above 0: uint8, shape (height, width, 3).

    The camera pans over the backdrop alone, and follows the things; zoom and shake move both.
    """
    look = sample_look(scene.look)
    zoom, shift_x, shift_y = look.camera(scene, frame)
    canvas = _draw_view(replace(scene, things=(), style=None), frame, height, width).copy()
    for thing in scene.things:
        sprite = draw_sprite(_still(thing), scene.realism, scene.look, min(height, width))
        x, y = ((center(thing, frame) - 0.5 - [shift_x, shift_y]) * zoom + 0.5) * [width, height]
        _composite(canvas, sprite, x, y, zoom)
    light = _vignette(scene.realism * look.vignette, height, width) * look.gains(scene, frame)
    return np.clip(canvas * light + np.float32(0.5), 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _draw_view(scene: Scene, frame: int, height: int, width: int) -> Frame:
    """Return what the camera sees of the backdrop: (h, w, 3), shared between calls."""
    zoom, shift_x, shift_y = sample_look(scene.look).camera(scene, frame)
    backdrop = draw_backdrop(scene, height, width)
    left = (scene.pan * frame / 1.5 + shift_x + 0.5 - 0.5 / zoom) % PERIOD
    top = shift_y + 0.5 - 0.5 / zoom + MARGIN
    corners = np.array([[left, top], [left + 1 / zoom, top + 1 / zoom]]) * [width, height] * SUPERSAMPLING
    box = np.clip(corners, 0, backdrop.size).ravel().tolist()
    return np.asarray(backdrop.resize((width, height), _FILTER, box))


@lru_cache(maxsize=4)
def _vignette(amount: float, height: int, width: int) -> Array:
    """Return the share of light that reaches each pixel, (h, w, 1): 1 - amount in the corners."""
    y, x = (((np.arange(n) + 0.5) / n * 2 - 1) ** 2 / 2 for n in (height, width))
    return (1 - amount * (y[:, None] + x))[..., None].astype(np.float32)


def _still(thing: Thing) -> Thing:
    """Return the thing without its place and motion, which a sprite does not depend on."""
    return Thing(thing.noun, thing.color, radius=thing.radius, drift=math.copysign(1.0, thing.drift))


@lru_cache(maxsize=8)
def draw_sprite(thing: Thing, realism: float, look_seed: int, short_side: int) -> Image.Image:
    """Return a thing with texture, shading and shadow: a square of mode RGBa (premultiplied).

    It is drawn for frames of `short_side` pixels, `SUPERSAMPLING` times as fine; its middle is the thing's.
    """
    scale = thing.radius * short_side * SUPERSAMPLING
    half = math.ceil(_REACH * scale) + 4
    parts = list(primitives(thing, scale, np.array([half, half], np.float64)))
    index = Image.new("I", (2 * half, 2 * half), 0)
    draw = ImageDraw.Draw(index)
    for number, (kind, _, points) in enumerate(parts, 1):
        draw_primitive(draw, kind, number, points)
    numbers = np.asarray(index)
    is_thing = (numbers > 0).astype(np.float32)[..., None]

    look = sample_look(look_seed)
    fields = fractal_fields(field_size(SUPERSAMPLING * short_side))
    picture = shade(numbers, _surfaces_of(parts, thing, look, realism, scale, half, fields.shape[-1]), fields)
    shadow = realism * _shadow(is_thing[..., 0], look, scale, half)[..., None] * (1 - is_thing)
    pixels = np.concatenate([np.clip(picture, 0, 255) * is_thing, 255 * (is_thing + shadow)], axis=-1)
    raw = (pixels + 0.5).astype(np.uint8).tobytes()
    return Image.frombuffer("RGBa", index.size, raw, "raw", "RGBa", 0, 1)


def _surfaces_of(
    parts: list[tuple[str, grammar.RGB, NDArray[np.float64]]],
    thing: Thing,
    look: Look,
    realism: float,
    scale: float,
    half: int,
    field: int,
) -> Surfaces:
    """Return the surfaces of a thing's parts, numbered from 1; each is shaded as if it were round."""
    rng = look.generator("things", grammar.NOUNS.index(thing.noun))
    n = len(parts) + 1
    texture, contrast = rng.integers(0, NUM_TEXTURES), rng.uniform(0.08, 0.22)
    roundness = rng.uniform(0.2, 0.4)
    corners = np.array([[half - scale] * 2, [half + scale] * 2])
    boxes = np.array([corners, *([p.min(axis=0), p.max(axis=0)] for _, _, p in parts)])
    center, extent = boxes.mean(axis=1), np.maximum(np.ptp(boxes, axis=1) / 2, scale / 8)
    whole = 0.6 / scale  # the thing as a whole is lit from the same side
    return Surfaces(
        colors=np.array([(0, 0, 0), *(color for _, color, _ in parts)], np.float32),
        texture=np.full(n, texture, np.int32),
        offset=np.repeat(rng.integers(0, field, (1, 2)), n, axis=0).astype(np.int32),
        contrast=np.full(n, realism * contrast, np.float32),
        slope=(realism * roundness * look.light * (1 / extent + whole) / 1.6).astype(np.float32),
        center=center.astype(np.float32),
    )


def _shadow(is_thing: Array, look: Look, scale: float, half: int) -> Array:
    """Return how much of the light a thing takes away behind and below it, (h, w), at realism 1."""
    mask = Image.fromarray((is_thing * 110).astype(np.uint8))
    x, y = look.light * 0.2 * scale
    shadows = mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))
    ellipse = np.array([half, half + 0.97 * scale]) + np.array([[-0.75], [0.75]]) * scale * [1, 0.16]
    ImageDraw.Draw(shadows).ellipse(ellipse.ravel().tolist(), fill=130)
    coarse = shadows.reduce(2).filter(ImageFilter.GaussianBlur(0.04 * scale))
    blurred = coarse.resize(mask.size, Image.Resampling.BILINEAR)
    # The faint rim is cut off, as `edit_mask` would miss it.
    return np.maximum(np.asarray(blurred, np.float32) * np.float32(1.2 / 255) - np.float32(0.08), 0)


def _composite(canvas: Frame, sprite: Image.Image, x: float, y: float, zoom: float) -> None:
    """Paint a sprite over a frame (h, w, 3), in place, with its center at (x, y) in pixels."""
    height, width = canvas.shape[:2]
    ratio, half = SUPERSAMPLING / zoom, sprite.width / 2
    reach = (half - 3) / ratio
    left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    box = [(a - b) * ratio + half for a, b in ((left, x), (top, y), (right, x), (bottom, y))]
    box = np.clip(box, 0, 2 * half).tolist()
    resized = sprite.resize((right - left, bottom - top), _FILTER, box)
    pixels = np.frombuffer(resized.tobytes(), np.uint8).reshape(bottom - top, right - left, 4)
    region = canvas[top:bottom, left:right]
    behind = region * (1 - pixels[..., 3:] * np.float32(1 / 255))
    region[:] = np.clip(behind + pixels[..., :3] + 0.5, 0, 255).astype(np.uint8)
