"""Backdrops with the statistics of photographs: textured landscapes and dead-leaves pictures.

A backdrop is a canvas that is wider and higher than the frame. It repeats after 4/3 of the frame's width, two
periods of the flat drawing's hills, so that a camera can pan over it forever.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from rvedit.playground import grammar
from rvedit.playground.drawing import SUPERSAMPLING, ridge, sky_colors
from rvedit.playground.look import sample_look
from rvedit.playground.scene import Scene
from rvedit.playground.textures import (
    CLOUDS,
    LIGHT,
    NUM_TEXTURES,
    Array,
    Surfaces,
    blobs,
    draw_index,
    field_size,
    fractal_fields,
    power_law_radii,
    shade,
)

PERIOD = 4 / 3
"""Width of a backdrop before it repeats, in frames."""
MARGIN = 0.05
"""Height of the canvas above and below the frame, in frames."""
_SKY, _HILLS, _GROUND = range(3)
_CLOUD, _SHOULDER = np.float32(238), np.float32(190)


@lru_cache(maxsize=2)
def draw_backdrop(scene: Scene, height: int, width: int) -> Image.Image:
    """Return the canvas of a scene without things, `SUPERSAMPLING` times as fine as frames (height, width).

    It spans `PERIOD` + 1 frames horizontally, the second part repeating the first, and 1 + 2 `MARGIN` frames
    vertically. Calls with equal arguments share one picture.
    """
    rows, columns = round(SUPERSAMPLING * height * (1 + 2 * MARGIN)), round(SUPERSAMPLING * width * PERIOD)
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / (SUPERSAMPLING * height) - MARGIN).astype(np.float32)
    x = (np.arange(columns) + 0.5) / (SUPERSAMPLING * width)
    regions = np.full((rows, columns), _SKY, np.int32)
    regions[y[:, None] >= ridge(scene, x, 0)] = _HILLS
    regions[y >= scene.horizon] = _GROUND
    colors = np.array(grammar.BACKGROUNDS[scene.background], np.float32)
    sky = sky_colors(scene, (np.maximum(y, 0) / scene.horizon).astype(np.float32))
    flat = colors[1:].take(regions, axis=0)
    is_sky = regions == _SKY
    flat[is_sky] = sky[np.nonzero(is_sky)[0]]

    mixed = _draw_surfaces(scene, regions, sky, SUPERSAMPLING * min(height, width))
    mixed -= flat
    mixed *= np.float32(scene.realism)
    mixed += flat
    mixed += np.float32(0.5)
    pixels = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)
    weight = 0.15 * scene.realism  # cameras sharpen
    kernel = ImageFilter.Kernel((3, 3), [-weight] * 4 + [1 + 8 * weight] + [-weight] * 4, scale=1)
    sharp = np.asarray(Image.fromarray(pixels).filter(kernel))
    canvas = Image.fromarray(np.concatenate([sharp, sharp[:, : SUPERSAMPLING * width]], axis=1))
    return _defocus(canvas, scene, SUPERSAMPLING * min(height, width))


def _draw_surfaces(scene: Scene, regions: NDArray[np.int32], sky: Array, side: int) -> Array:
    """Return the picture (h, w, 3) of a scene at realism 1; `side` is the frame's short side in pixels."""
    look = sample_look(scene.look)
    rng = look.generator("backdrop")
    fields = fractal_fields(field_size(side))
    rows, columns = regions.shape
    n = 750 if look.is_cluttered else 600
    if look.is_cluttered:
        radius = power_law_radii(rng, n, 0.013, 0.9) * side
        center = rng.uniform(0, [columns, rows], (n, 2))
        colors = _cluttered_colors(rng, scene, center, radius > 0.06 * side)
        outlines = blobs(rng, center, radius, max_aspect=6)
    else:
        center, radius, colors = _landscape_shapes(rng, scene, n, rows, columns, side)
        outlines = blobs(rng, center, radius, max_aspect=3)
    colors *= np.exp(rng.normal(0, 0.22, (n, 1))) * np.exp(rng.normal(0, 0.06, (n, 3)))
    roundness = rng.uniform(0, 0.4, (n, 1)) * look.light
    surfaces = Surfaces(
        colors=np.clip(colors, 4, 250).astype(np.float32),
        texture=rng.integers(0, NUM_TEXTURES, n).astype(np.int32),
        offset=rng.integers(0, fields.shape[-1], (n, 2)).astype(np.int32),
        contrast=(0.45 * rng.random(n) ** 1.3 + 0.05).astype(np.float32),
        slope=(roundness / radius[:, None]).astype(np.float32),
        center=center.astype(np.float32),
    )
    outlines, surfaces = _wrap(outlines, surfaces, columns)
    surfaces = _with_regions(scene, surfaces, rng)
    index = draw_index(regions, outlines, len(surfaces.colors) - len(outlines))
    picture = shade(index, surfaces, fields)

    y, x = np.nonzero(index == _SKY)
    lines, repeat = _somewhere(rng, index.shape, fields.shape[-1])
    clouds = np.clip(fields[CLOUDS][lines[y], repeat[x]] * 0.4 + look.cloudiness, 0, 1)[:, None]
    picture[y, x] = sky[y] + clouds * (_CLOUD - sky[y])
    patches = fields[LIGHT][np.ix_(*_somewhere(rng, index.shape, fields.shape[-1]))]
    picture *= np.exp(look.patches * patches)[..., None]
    bright = picture > _SHOULDER  # film and sensors compress what is very bright
    picture[bright] = _SHOULDER + (255 - _SHOULDER) * np.tanh(
        (picture[bright] - _SHOULDER) / (255 - _SHOULDER)
    )
    return picture


def _somewhere(
    rng: np.random.Generator, shape: tuple[int, ...], field: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of a field for a canvas, from a random place on.

    The field's period is stretched to the canvas's width, so that both repeat together.
    """
    start = rng.integers(0, field, 2)
    rows, columns = (np.arange(n, dtype=np.int64) for n in shape)
    return (rows + start[0]) % field, (columns * field // shape[1] + start[1]) % field


def _cluttered_colors(
    rng: np.random.Generator, scene: Scene, center: NDArray[np.float64], is_large: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return colors (n, 3) of shapes with centers (n, 2): the background's, and some of low saturation.

    Most small shapes have the color of their neighborhood, as the parts of a tree or of a wall do.
    """
    gray = np.exp(rng.uniform(np.log(30), np.log(220), (6, 1)))
    random = np.clip(gray * (1 + rng.exponential(0.2, (6, 1)) * rng.normal(0, 1, (6, 3))), 18, 245)
    own = np.array(grammar.BACKGROUNDS[scene.background], np.float64)
    palette = np.concatenate([own, random])
    middles = rng.uniform(0, 1, (10, 2)) * center.max(axis=0)
    nearest = np.square(center[:, None] - middles).sum(axis=2).argmin(axis=1)
    is_free = is_large | (rng.random(len(center)) < 0.25)
    return palette[np.where(is_free, rng.integers(0, 10, len(center)), nearest)]


def _landscape_shapes(
    rng: np.random.Generator, scene: Scene, n: int, rows: int, columns: int, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return centers (n, 2), radii (n,) and colors (n, 3) of shapes, the nearest last.

    Shapes on the ground are the smaller the closer to the horizon they are; a third are at the ridge.
    """
    frame = rows / (1 + 2 * MARGIN)
    depth = np.sort(rng.uniform(0, 1, n) ** 1.5)
    at_ridge = rng.random(n) < np.where(depth < 0.2, 0.7, 0.1)
    on_ground = scene.horizon + (1 + MARGIN - scene.horizon) * depth
    y = np.where(at_ridge, scene.horizon - rng.exponential(0.02, n), on_ground)
    radius = power_law_radii(rng, n, 0.008, 0.3) * np.where(at_ridge, 0.9, 0.35 + 1.4 * depth) * side
    center = np.stack([rng.uniform(0, columns, n), (y + MARGIN) * frame], axis=1)
    _, _, hills, ground = (np.array(c, np.float64) for c in grammar.BACKGROUNDS[scene.background])
    return center, radius, np.where(at_ridge[:, None], hills * 0.8, ground)


def _wrap(
    outlines: NDArray[np.float64], surfaces: Surfaces, columns: int
) -> tuple[NDArray[np.float64], Surfaces]:
    """Repeat the shapes that cross the left or right border of the canvas at its other side."""
    left, right = outlines[..., 0].min(axis=1) < 0, outlines[..., 0].max(axis=1) >= columns
    everything = np.arange(len(outlines))
    source = np.concatenate([everything, everything[left], everything[right]])
    shift = np.concatenate([0 * everything, left[left] * columns, right[right] * -columns])
    order = np.argsort(source, kind="stable")
    source, shift = source[order], shift[order]
    moved = np.stack([shift, 0 * shift], axis=1)
    return outlines[source] + moved[:, None], Surfaces(
        colors=surfaces.colors[source],
        texture=surfaces.texture[source],
        offset=(surfaces.offset[source] - moved).astype(np.int32),
        contrast=surfaces.contrast[source],
        slope=surfaces.slope[source],
        center=(surfaces.center[source] + moved).astype(np.float32),
    )


def _with_regions(scene: Scene, surfaces: Surfaces, rng: np.random.Generator) -> Surfaces:
    """Prepend the surfaces of sky, hills and ground, without shading."""
    colors = np.array(grammar.BACKGROUNDS[scene.background][1:], np.float32)
    zeros = np.zeros((3, 2), np.float32)
    contrast = np.array([0, *rng.uniform(0.1, 0.3, 2)], np.float32)
    return Surfaces(
        colors=np.concatenate([colors, surfaces.colors]),
        texture=np.concatenate([rng.integers(0, NUM_TEXTURES - 1, 3).astype(np.int32), surfaces.texture]),
        offset=np.concatenate([zeros.astype(np.int32), surfaces.offset]),
        contrast=np.concatenate([contrast, surfaces.contrast]),
        slope=np.concatenate([zeros, surfaces.slope]),
        center=np.concatenate([zeros, surfaces.center]),
    )


def _defocus(canvas: Image.Image, scene: Scene, side: int) -> Image.Image:
    """Blur what is far: all of a dead-leaves picture, or what is at and above a landscape's horizon."""
    look = sample_look(scene.look)
    sigma = scene.realism * look.defocus * side
    if sigma < 0.05:
        return canvas
    blurred = canvas.filter(ImageFilter.GaussianBlur(sigma))
    if look.is_cluttered:
        return blurred
    rows = canvas.height
    y = np.arange(rows) / rows * (1 + 2 * MARGIN) - MARGIN
    far = np.clip(1 - (y - scene.horizon) / 0.3, 0, 1) * 255
    mask = np.broadcast_to(far.astype(np.uint8)[:, None], (rows, canvas.width))
    return Image.composite(blurred, canvas, Image.fromarray(np.ascontiguousarray(mask)))
