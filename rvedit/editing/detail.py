"""Detail transfer: restore the source's detail in the colors of the edit.

Models edit a downscaled source, and detail that the VAE cannot represent is lost: faces, text, grain. Let S
be the source at full size, R the VAE's reconstruction of it and E the edit, both at the model's size. In a
neighborhood of each pixel, E is fitted as an affine function of the colors of R,

    A = cov(E, R) cov(R)^-1,    b = mean(E) - A mean(R),    E = A R + b + residual,

and the same function is applied to S at full size:

    output = upsample(A) S + upsample(b + gate * residual).

With a gate of 1 this is upsample(E) + upsample(A) (S - upsample(R)), the guided filter with a color guide
(He, Sun and Tang, "Guided Image Filtering", ECCV 2010; on cells of pixels as in He and Sun, "Fast Guided
Filter", 2015), used as in Chen et al., "Bilateral Guided Upsampling" (SIGGRAPH Asia 2016). Where the edit
drew new content, R does not explain it: A is small, and the output is E.

Four rules extend the formula; `benchmarks/footage.py` and `benchmarks/nano_detail.py` measure the result.

1. The fit also covers time: moments are averaged over REACH frames before and after, so that A and b change
   slowly, and flicker of E remains in the residual.
2. The gate is 1 near new content: where the residual exceeds the model's error, which is about |S - R| at the
   model's size, and at least one gray level. A residual below twice that error is noise; one above four times
   is new content.
3. Where R is flat, cov(R) does not determine A. There A is regularized towards the fit over the whole frame,
   except near new content; so E = R gives exactly S. At new content, where neighborhoods disagree about A,
   and where A keeps little of R's contrast, A is set to 0, so that no outline of a removed object shows.
4. If the edit is a texture (pixel art, a drawing), nothing is transferred: see `has_own_texture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from rvedit.io.frames import Frames

# Sizes are in cells of half a latent's side, colors in [0, 1].
RADIUS = 2
"""Radius of the neighborhood of a fit: 2 is 5 x 5 cells."""
REACH = 12
"""Number of frames before and after a frame that its fit covers."""
REGULARIZATION = 3e-4
"""Added to the variances of R: colors that vary less than sqrt(0.0003) barely determine A."""
ERROR_LOW, ERROR_HIGH = 2.0, 4.0
"""Multiples of the model's error: a residual below the first is noise, above the second new content."""
NEW_RADIUS = 2
"""Within this many cells of new content, A is 0."""
NEAR_RADIUS = 4
"""Within this many cells of new content, the residual is added, and A is not regularized."""
AGREEMENT_LOW, AGREEMENT_HIGH = 0.5, 0.8
"""Share of A's contrast that remains if A is averaged over neighbors: A is 0 below, kept above."""
CONTRAST_LOW, CONTRAST_HIGH = 0.3, 0.6
"""Contrast that A keeps, relative to the fit over the whole frame: A is 0 below, kept above."""
OUTSIDE_WEIGHT = 1e-3
"""Weight of cells outside a mask, which only count where a neighborhood has no others."""
BAND_PIXELS = 2_000_000
"""Number of pixels at the source's size that are computed at once."""


@dataclass(frozen=True)
class ColorMap:
    """A frame's edit as a function of the source's colors in [0, 1]: output = A S + c."""

    matrix: Float[Tensor, "3 3 h w"]
    """A, at the model's size."""
    offset: Float[Tensor, "3 h w"]
    """c, at the model's size."""


class DetailTransfer:
    """Color maps of a stream of edited frames; each is returned once `REACH` later ones have been added.

    Args:
        cell: side of a cell in pixels at the model's size: half of a latent's side.
        strength: from 0, the plain edit, to 1, the full transfer.
        device: device of the computation.
    """

    def __init__(self, cell: int, strength: float = 1.0, device: torch.device | str = "cpu") -> None:
        self.cell, self.strength = cell, strength
        # MPS has no fp64, which the fits need.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.moments: list[Tensor] = []  # and weights; of the pending frames and REACH frames before them
        self.pending: list[tuple[Tensor, Tensor]] = []  # (edit, reconstruction), uint8

    def add(
        self,
        edited: Frames,
        reconstructed: Frames,
        source: Frames,
        masks: Bool[np.ndarray, "t h w"] | None = None,
    ) -> Iterator[ColorMap]:
        """Add frames (t, h, w, 3), all at the model's size; yield the maps that are ready.

        Within a mask, fits do not see what is outside.
        """
        allowed = np.ones(edited.shape[:3], bool) if masks is None else masks
        for frames, mask in zip(zip(edited, reconstructed, source, strict=True), allowed, strict=True):
            e, r, s = (_to_unit(frame, self.device) for frame in frames)
            weights = _pool(torch.from_numpy(mask)[None].to(self.device).double(), self.cell)
            weights = weights.clamp(min=OUTSIDE_WEIGHT)
            self.moments.append(torch.cat([weights * _moments(e, r, s, self.cell), weights]))
            self.pending.append((torch.from_numpy(frames[0]), torch.from_numpy(frames[1])))
        yield from self._pop(len(self.pending) - REACH)

    def flush(self) -> Iterator[ColorMap]:
        """Yield the maps of the pending frames, after the last frame."""
        yield from self._pop(len(self.pending))

    def _pop(self, count: int) -> Iterator[ColorMap]:
        for _ in range(count):
            index = len(self.moments) - len(self.pending)
            nearby = self.moments[max(0, index - REACH) : index + REACH + 1]
            edited, reconstructed = (_to_unit(x, self.device) for x in self.pending.pop(0))
            yield self._map(torch.stack(nearby).mean(dim=0), edited, reconstructed)
            if index >= REACH:
                self.moments.pop(0)

    def _map(
        self,
        moments: Float[Tensor, "26 y x"],
        edited: Float[Tensor, "3 h w"],
        reconstructed: Float[Tensor, "3 h w"],
    ) -> ColorMap:
        moments, weights = moments[:25] / moments[25:], moments[25:]
        local = _Moments.of(_box(moments, RADIUS, weights))

        # Find new content, which R does not explain.
        matrix = local.fit(REGULARIZATION)
        _, _, residual = _apply(matrix, local, RADIUS, edited, reconstructed, weights)
        size = _box(_pool(residual.square().mean(dim=0, keepdim=True), self.cell), 1).sqrt()
        error = local.error.sqrt() + 1 / 255  # frames are rounded to 8 bits, and fits regularized
        new = _smoothstep(weights.float() * size / error, ERROR_LOW, ERROR_HIGH)
        near_new = _box(_grow(new, NEAR_RADIUS), RADIUS)
        overall = _fit_overall(moments, weights * (1 - near_new))

        matrix = local.fit(REGULARIZATION, overall * (1 - near_new[0, ..., None, None]))
        trust = _trust(matrix, overall, local, weights) * (1 - _grow(new, NEW_RADIUS)[0])
        a, b, residual = _apply(
            matrix * trust[..., None, None], local, RADIUS, edited, reconstructed, weights
        )
        offset = b + _at_pixels(near_new, edited) * residual
        return ColorMap(self.strength * a, self.strength * offset + (1 - self.strength) * edited)


def _trust(
    matrix: Float[Tensor, "y x 3 3"], overall: Float[Tensor, "1 1 3 3"], local: _Moments, weights: Tensor
) -> Float[Tensor, "y x"]:
    """Return the factor from 0 to 1 that A is multiplied by (rule 3), from contrasts of A R."""
    mean, guide = (_box_matrix(x, RADIUS, weights) for x in (matrix, local.guide))
    contrast_of_mean = _contrast(mean, guide)
    mean_contrast = _box(_contrast(matrix, local.guide)[None], RADIUS, weights)[0]
    # Where R is flat, both ratios are about 1, and A is kept.
    agreement = (contrast_of_mean + 1e-4) / (mean_contrast + 1e-4)
    contrast = ((contrast_of_mean + 1e-6) / (_contrast(overall, guide) + 1e-6)).sqrt()
    agrees = _smoothstep(agreement, AGREEMENT_LOW, AGREEMENT_HIGH)
    return agrees * _smoothstep(contrast, CONTRAST_LOW, CONTRAST_HIGH)


def _fit_overall(
    moments: Float[Tensor, "25 y x"], weights: Float[Tensor, "1 y x"]
) -> Float[Tensor, "1 1 3 3"]:
    """Return A for all cells of weight 1, regularized towards equal gains of all colors."""
    weights = weights + 1e-6
    frame = _Moments.of((moments * weights).sum(dim=(1, 2), keepdim=True) / weights.sum())
    variance = frame.guide.diagonal(dim1=-2, dim2=-1).mean()
    gain = frame.cross.diagonal(dim1=-2, dim2=-1).mean() / (variance + 1e-12)
    return frame.fit(1e-4 * variance + 1e-12, gain * torch.eye(3, dtype=moments.dtype, device=moments.device))


def apply_map(color_map: ColorMap, source: Frames, rows: int | None = None) -> Frames:
    """Return the output frame (h, w, 3), of the source's size; computed on the map's device.

    `rows` rows are computed at once, by default as many as hold BAND_PIXELS pixels.
    """
    height, width = source.shape[:2]
    rows = rows or max(1, BAND_PIXELS // width)
    channels = torch.cat([color_map.matrix.flatten(0, 1), color_map.offset])[None]
    # Resize to the source's height first, and then band by band to its width.
    channels = _resize(channels, height, channels.shape[-1])
    output = torch.empty(source.shape, dtype=torch.uint8)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        a_and_c = _resize(channels[:, :, band], len(source[band]), width)[0]
        pixels = _to_unit(source[band], channels.device)
        mapped = a_and_c[9:]
        for i in range(3):
            for j in range(3):
                mapped[i].addcmul_(a_and_c[3 * i + j], pixels[j])
        levels = (mapped * 255).round_().clamp_(0, 255).to(torch.uint8).cpu()
        output[band] = rearrange(levels, "c h w -> h w c")
    return output.numpy()


def has_own_texture(
    edited: Frames,
    reconstructed: Frames,
    cell: int,
    masks: Bool[np.ndarray, "t h w"] | None = None,
    share: float = 0.65,
) -> bool:
    """Return whether most of the frame, or of its mask, has a texture that the source lacks, as in pixel art.

    Counts the cells where the edit has edges (mean squared difference between neighboring pixels above
    0.0003), and those of them where an affine function of R explains less than a fifth of the edges. Their
    ratio, with nano on 40 playground clips and 6 real ones, is 0.72 to 0.95 for pixel art, at most 0.35 for
    other styles, and at most 0.57 for local edits; `share` is the threshold. Clips are (t, h, w, 3), at the
    model's size; about nine frames are read.
    """
    radius, regularization = 3, 1e-3
    unexplained = textured = 0
    step = -(-len(edited) // 9)
    allowed = np.ones(edited.shape[:3], bool) if masks is None else masks
    for *frames, mask in zip(edited[::step], reconstructed[::step], allowed[::step], strict=True):
        e, r = (_to_unit(frame, torch.device("cpu")) for frame in frames)
        local = _Moments.of(_box(_moments(e, r, r, cell), radius))
        _, _, residual = _apply(local.fit(regularization), local, radius, e, r)
        edges, residual_edges = (_box(_pool(_edges(x), cell), radius) for x in (e, residual))
        has_edges = (edges > 3e-4) & (_pool(torch.from_numpy(mask)[None].float(), cell) > 0.5)
        textured += int(has_edges.sum())
        unexplained += int((has_edges & (residual_edges > 0.8 * edges)).sum())
    return textured > 0 and unexplained / textured > share


@dataclass(frozen=True)
class _Moments:
    """Means and covariances of E and R in the neighborhood of each cell (y, x)."""

    edit: Float[Tensor, "3 y x"]
    """mean(E)"""
    reconstructed: Float[Tensor, "3 y x"]
    """mean(R)"""
    cross: Float[Tensor, "y x 3 3"]
    """cov(E, R)"""
    guide: Float[Tensor, "y x 3 3"]
    """cov(R)"""
    error: Float[Tensor, "1 y x"]
    """mean((S - R)^2)"""

    @classmethod
    def of(cls, moments: Float[Tensor, "25 y x"]) -> _Moments:
        """Return the covariances of the means that `_moments` returns."""
        edit, reconstructed = moments[:3], moments[3:6]
        products = rearrange(moments[6:24], "(n i j) y x -> n y x i j", n=2, i=3)
        cross = products[0] - torch.einsum("iyx,jyx->yxij", edit, reconstructed)
        guide = products[1] - torch.einsum("iyx,jyx->yxij", reconstructed, reconstructed)
        return cls(edit, reconstructed, cross, guide, moments[24:])

    def fit(self, regularization: float | Tensor, prior: Tensor | float = 0.0) -> Float[Tensor, "y x 3 3"]:
        """Return A = (cov(E, R) + eps prior) (cov(R) + eps)^-1, with eps the regularization."""
        eps = regularization * torch.eye(3, dtype=self.guide.dtype, device=self.guide.device)
        right = self.cross + regularization * prior
        return torch.linalg.solve(self.guide + eps, right, left=False)


def _apply(
    matrix: Float[Tensor, "y x 3 3"],
    local: _Moments,
    radius: int,
    edited: Tensor,
    reconstructed: Tensor,
    weights: Tensor | None = None,
) -> tuple[Float[Tensor, "3 3 h w"], Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]]:
    """Return A and b of each pixel, averaged over the neighborhoods that contain it, and the residual."""
    offset = local.edit - torch.einsum("yxij,jyx->iyx", matrix, local.reconstructed)
    functions = _box(torch.cat([rearrange(matrix, "y x i j -> (i j) y x"), offset]), radius, weights)
    a, b = _at_pixels(functions, edited).split([9, 3])
    a = rearrange(a, "(i j) h w -> i j h w", i=3)
    return a, b, edited - torch.einsum("ijhw,jhw->ihw", a, reconstructed) - b


def _at_pixels(x: Float[Tensor, "k y x"], like: Float[Tensor, "3 h w"]) -> Float[Tensor, "k h w"]:
    """Resize a map of cells to the pixels of a frame."""
    return F.interpolate(x[None].float(), like.shape[-2:], mode="bilinear", align_corners=False)[0]


def _moments(e: Tensor, r: Tensor, s: Tensor, cell: int) -> Float[Tensor, "25 y x"]:
    """Return the means over cells of E, R, E R^T, R R^T and (S - R)^2."""
    e, r, s = e.double(), r.double(), s.double()  # variances are small differences of large numbers
    products = [torch.einsum("ihw,jhw->ijhw", x, r).flatten(0, 1) for x in (e, r)]
    return _pool(torch.cat([e, r, *products, (s - r).square().mean(dim=0, keepdim=True)]), cell)


def _to_unit(frame: Tensor | Frames, device: torch.device) -> Float[Tensor, "3 h w"]:
    return rearrange(torch.as_tensor(frame).to(device), "h w c -> c h w").float() / 255


def _edges(x: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 h w"]:
    """Return the sum of the squared differences to the pixels to the right and below."""
    right, below = F.pad(x.diff(dim=-1), (0, 1)), F.pad(x.diff(dim=-2), (0, 0, 0, 1))
    return (right.square() + below.square()).sum(dim=0, keepdim=True)


def _pool(x: Float[Tensor, "k h w"], cell: int) -> Float[Tensor, "k y x"]:
    return F.avg_pool2d(x, cell, ceil_mode=True)


def _box(
    x: Float[Tensor, "k y x"], radius: int, weights: Float[Tensor, "1 y x"] | None = None
) -> Float[Tensor, "k y x"]:
    """Return the mean, or weighted mean, of each neighborhood."""
    if weights is not None:
        return _box(weights * x, radius) / _box(weights, radius)
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def _grow(x: Float[Tensor, "1 y x"], radius: int) -> Float[Tensor, "1 y x"]:
    return F.max_pool2d(x, 2 * radius + 1, 1, radius)


def _box_matrix(
    matrix: Float[Tensor, "y x 3 3"], radius: int, weights: Float[Tensor, "1 y x"]
) -> Float[Tensor, "y x 3 3"]:
    flat = rearrange(matrix, "y x i j -> (i j) y x")
    return rearrange(_box(flat, radius, weights), "(i j) y x -> y x i j", i=3)


def _contrast(matrix: Float[Tensor, "#y #x 3 3"], guide: Float[Tensor, "y x 3 3"]) -> Float[Tensor, "y x"]:
    """Return tr(A cov(R) A^T): the variance of A R, summed over colors."""
    return (matrix @ guide * matrix).sum(dim=(-2, -1))


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """Return a smooth step from 0 at `low` to 1 at `high`."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def _resize(x: Float[Tensor, "1 k h w"], height: int, width: int) -> Tensor:
    """Resize like `resize_frames`."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)
