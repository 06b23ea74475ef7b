"""Textures with the statistics of photographs: 1/f fields, and shapes with textures and shading.

Natural images have a power spectrum of about 1/f², and occlusion gives them heavy-tailed gradients (Lee,
Mumford, Huang: "Occlusion models for natural images", 2001; Achddou, Gousseau, Ladjal: "Synthetic images as a
regularity prior for image restoration neural networks", 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]

_SEED = 8191
# (exponent of the amplitude spectrum, how much longer horizontal than vertical structures are)
_FIELDS = ((0.8, 1.0), (1.1, 1.0), (0.6, 1.0), (0.8, 6.0), (0.8, 1 / 6), (1.5, 1.5), (2.2, 2.0))
NUM_TEXTURES = 5
"""The first fields are textures of surfaces; the others are `CLOUDS` and `LIGHT`."""
CLOUDS, LIGHT = 5, 6
MAX_FIELD = 1024
"""Pixels after which a field repeats, at most."""


@lru_cache(maxsize=4)
def fractal_fields(size: int) -> Array:
    """Return fields with spectra of 1/f^a: (7, size, size), tileable, mean 0, standard deviation 1.

    `size` is a power of two. Frequencies that two sizes have in common have the same random phases.
    """
    fields = []
    for kind, (exponent, stretch) in enumerate(_FIELDS):
        spectrum = np.zeros((size, size), np.complex64)
        half = size // 2
        while half:  # octaves from the finest to the coarsest, each with its own generator
            rng = np.random.default_rng([_SEED, kind, half])
            block = rng.standard_normal((2, 2 * half, 2 * half), np.float32)
            inner = slice(size // 2 - half, size // 2 + half)
            spectrum[inner, inner] = block[0] + 1j * block[1]
            half //= 2
        ky, kx = np.meshgrid(*[np.arange(-(size // 2), size // 2, dtype=np.float32)] * 2, indexing="ij")
        frequency = np.hypot(kx * stretch**0.5, ky / stretch**0.5)
        spectrum *= np.maximum(frequency, 1) ** -exponent * (frequency > 0)
        field = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
        fields.append(((field - field.mean()) / field.std()).astype(np.float32))
    return np.stack(fields)


def field_size(short_side: int) -> int:
    """Return the size of the fields for a picture: a power of two, at most `MAX_FIELD`."""
    return int(min(MAX_FIELD, 2 ** max(4, (short_side - 1).bit_length())))


@dataclass(frozen=True)
class Surfaces:
    """Colors, textures and shading of n shapes."""

    colors: Array
    """(n, 3), 0 to 255."""
    texture: NDArray[np.int32]
    """Number of the field, (n,), below `NUM_TEXTURES`."""
    offset: NDArray[np.int32]
    """Where the texture starts, (n, 2) as (x, y) in pixels."""
    contrast: Array
    """Standard deviation of the texture, (n,), as a share of the color."""
    slope: Array
    """Change of brightness per pixel, (n, 2) as (x, y), as a share of the color."""
    center: Array
    """Where the slope's shading is zero, (n, 2) as (x, y) in pixels."""


def shade(index: NDArray[np.int32], surfaces: Surfaces, fields: Array) -> Array:
    """Return the picture (h, w, 3) of an index map (h, w) of shapes: color (1 + texture + slope)."""
    size = fields.shape[-1]
    y, x = (np.arange(n, dtype=np.int32) for n in index.shape)
    shape = index.astype(np.intp)
    # Of each shape: where its texture is, and its brightness at the canvas's origin.
    texture = surfaces.texture.astype(np.int32) * (size * size)
    level = 1 - (surfaces.slope * surfaces.center).sum(axis=1)
    flat = texture.take(shape)
    flat += ((y[:, None] + surfaces.offset[:, 1].take(shape)) & (size - 1)) * np.int32(size)
    flat += (x + surfaces.offset[:, 0].take(shape)) & (size - 1)
    gain = fields.reshape(-1).take(flat)
    gain *= surfaces.contrast.take(shape)
    gain += level.take(shape)
    gain += surfaces.slope[:, 0].take(shape) * x.astype(np.float32)
    gain += surfaces.slope[:, 1].take(shape) * y.astype(np.float32)[:, None]
    np.clip(gain, 0.1, 2.5, out=gain)
    picture = surfaces.colors.take(shape, axis=0)
    picture *= gain[..., None]
    return picture


def blobs(
    rng: np.random.Generator,
    center: NDArray[np.float64],
    radius: NDArray[np.float64],
    max_aspect: float,
    corners: int = 10,
) -> NDArray[np.float64]:
    """Return outlines (n, corners, 2) of n shapes: rotated ellipses, half of them with irregular corners.

    Shapes have the area of a disc of their radius (n,), in pixels, and an aspect ratio up to `max_aspect`.
    """
    n = len(radius)
    angles = np.arange(corners) * (2 * np.pi / corners) + rng.uniform(0, 2 * np.pi, (n, 1))
    irregular = (rng.random((n, 1)) < 0.5) * 1.0
    angles = angles + irregular * rng.uniform(-0.9, 0.9, (n, corners)) * (np.pi / corners)
    distance = 1 - irregular * rng.uniform(0, 0.55, (n, corners))
    aspect = np.exp(rng.uniform(0, np.log(max_aspect), (n, 1)) * 0.5)
    x, y = np.cos(angles) * distance * aspect, np.sin(angles) * distance / aspect
    turn = rng.uniform(0, np.pi, (n, 1))
    outline = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)
    return np.asarray(outline * radius[:, None, None] + center[:, None])


def power_law_radii(rng: np.random.Generator, n: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """Return n radii with density proportional to r^-3, the law that makes dead leaves scale-invariant."""
    u = rng.random(n)
    return np.asarray(1 / np.sqrt(u / largest**2 + (1 - u) / smallest**2))


def draw_index(index: NDArray[np.int32], outlines: NDArray[np.float64], first: int) -> NDArray[np.int32]:
    """Return an index map (h, w) with outlines (n, corners, 2) drawn over it, as `first`, `first` + 1, ..."""
    canvas = Image.fromarray(index)
    draw = ImageDraw.Draw(canvas)
    for number, points in enumerate(outlines.reshape(len(outlines), -1).tolist(), first):
        draw.polygon(points, fill=number)
    return np.asarray(canvas)
