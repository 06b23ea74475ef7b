"""Detail transfer: the source's own detail, in the colours of the edit.

A model edits a small picture of the source, and what its VAE cannot draw is lost: faces, text, grain. Let S
be the source at its own size, R the VAE's reconstruction of it and E the edit, both at the model's size. In a
neighbourhood of each pixel E is fitted as an affine function of the colours of R,

    A = cov(E, R) cov(R)^-1,    b = mean(E) - A mean(R),    E = A R + b + residual,

and the same function is applied to S at full size:

    output = upsample(A) S + upsample(b + gate * residual).

With a gate of 1 this is upsample(E) + upsample(A) (S - upsample(R)), the guided filter with a colour guide
(He, Sun and Tang, "Guided Image Filtering", ECCV 2010; on cells of pixels as in He and Sun, "Fast Guided
Filter", 2015), used as in Chen et al., "Bilateral Guided Upsampling" (SIGGRAPH Asia 2016). Where the edit
drew something new, R does not explain it: A is small, and E shows.

Four rules go beyond the formula; `benchmarks/footage.py` and `benchmarks/nano_detail.py` measure the whole.

1. The fit is over time as well: the moments are averaged over `frames` before and after, so that A and b move
   slowly, and the flicker of E remains in the residual.
2. The residual is shown near something new: where it is larger than the model's own error. That error is
   known: it is about |S - R| at the model's size, and one grey level at least. A residual below twice that
   much is noise, and left out; one above four times is new.
3. Where R is flat, cov(R) says nothing about A. There A is drawn towards the fit over the whole frame, unless
   something new was drawn nearby; so E = R gives exactly S. Where something new was drawn, where
   neighbourhoods disagree about A, and where it keeps little of R's contrast, A is set to 0, so that no
   outline shows of a thing that was replaced or removed.
4. Where the texture is the edit (pixel art, a drawing), nothing is transferred: see `has_own_texture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rvedit.io.frames import Frames


@dataclass(frozen=True)
class DetailSettings:
    """Sizes are in cells of half a latent's side, colours in [0, 1]."""

    radius: int = 2
    """Of the neighbourhood of a fit: 5 x 5 cells."""
    frames: int = 12
    """Before and after a frame that its fit reads."""
    regularization: float = 3e-4
    """Added to the variances of R: colours that vary less than sqrt(0.0003) say little about A."""
    error_low: float = 2.0
    error_high: float = 4.0
    """Of the model's own error: below the first a residual is noise, above the second it is something new."""
    new_radius: int = 2
    """Within so many cells of something new, A is 0."""
    near_radius: int = 4
    """Within so many cells of something new, the residual is shown, and A not drawn to the whole frame's."""
    agreement_low: float = 0.5
    agreement_high: float = 0.8
    """Share of A's contrast that is left when A is averaged over neighbours: A is 0 below, kept above."""
    contrast_low: float = 0.3
    contrast_high: float = 0.6
    """Contrast that A keeps, of what the whole frame's A would keep there: A is 0 below, kept above."""


@dataclass(frozen=True)
class ColorMap:
    """How one frame's edit changes colours: output = A S + c, all for colours in [0, 1]."""

    matrix: Float[Tensor, "3 3 h w"]
    """A, at the model's size."""
    offset: Float[Tensor, "3 h w"]
    """c, at the model's size."""


BAND_PIXELS = 2_000_000
"""Of the source's size, that are computed at once."""


class DetailTransfer:
    """Fits the colour map of each frame of a stream of edits; a frame waits for `frames` later ones.

    Args:
        cell: side of a cell in pixels of the model's size: half of a latent's side.
        strength: 1 is the whole transfer, 0 the plain edit.
        device: where fits are computed.
    """

    def __init__(
        self,
        cell: int,
        strength: float = 1.0,
        settings: DetailSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cell, self.strength = cell, strength
        # MPS has no fp64, which the fits need.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.settings = settings or DetailSettings()
        self.moments: list[Tensor] = []  # of the frames that wait, and of those before that their fits read
        self.waiting: list[tuple[Tensor, Tensor]] = []  # (edit, reconstruction), uint8

    def add(self, edited: Frames, reconstructed: Frames, source: Frames) -> Iterator[ColorMap]:
        """Take the next frames (t, h, w, 3), all at the model's size; give the maps that are ready."""
        for frame, again, original in zip(edited, reconstructed, source, strict=True):
            e, r, s = (_to_unit(x, self.device) for x in (frame, again, original))
            self.moments.append(_moments(e, r, s, self.cell))
            self.waiting.append((torch.from_numpy(frame), torch.from_numpy(again)))
        yield from self._give(len(self.waiting) - self.settings.frames)

    def rest(self) -> Iterator[ColorMap]:
        """Give the maps of the frames that waited, when no more come."""
        yield from self._give(len(self.waiting))

    def _give(self, count: int) -> Iterator[ColorMap]:
        for _ in range(count):
            number = len(self.moments) - len(self.waiting)
            reach = self.settings.frames
            near = self.moments[max(0, number - reach) : number + reach + 1]
            edited, reconstructed = (_to_unit(x, self.device) for x in self.waiting.pop(0))
            yield self._map(torch.stack(near).mean(dim=0), edited, reconstructed)
            if number >= reach:
                self.moments.pop(0)

    def _map(
        self,
        moments: Float[Tensor, "k y x"],
        edited: Float[Tensor, "3 h w"],
        reconstructed: Float[Tensor, "3 h w"],
    ) -> ColorMap:
        chosen = self.settings
        local = _Moments.of(_box(moments, chosen.radius))
        error = local.error.sqrt() + 1 / 255  # frames are rounded to 8 bits, and fits regularized

        # Where is the edit something that R does not explain?
        matrix = local.fit(chosen.regularization)
        new = self._is_new(edited, reconstructed, matrix, local, error)
        near_new = _box(_grow(new, chosen.near_radius), chosen.radius)
        overall = _fit_overall(moments, 1 - near_new)

        matrix = local.fit(chosen.regularization, overall * (1 - near_new[0, ..., None, None]))
        trust = self._trust(matrix, overall, local) * (1 - _grow(new, chosen.new_radius)[0])
        matrix = matrix * trust[..., None, None]
        a, b = _split(_at_pixels(_functions(matrix, local, chosen.radius), edited))
        residual = edited - _multiply(a, reconstructed) - b
        offset = b + _at_pixels(near_new, edited) * residual
        plain = 1 - self.strength
        return ColorMap(self.strength * a, self.strength * offset + plain * edited)

    def _trust(
        self, matrix: Float[Tensor, "y x 3 3"], overall: Float[Tensor, "1 1 3 3"], local: _Moments
    ) -> Float[Tensor, "y x"]:
        """How much of A is kept, from 0 to 1: rule 3. The contrast of A R is tr(A cov(R) A^T)."""
        chosen = self.settings
        mean, guide = (_box_matrix(x, chosen.radius) for x in (matrix, local.guide))
        of_mean = _contrast(mean, guide)
        mean_of = _box(_contrast(matrix, local.guide)[None], chosen.radius)[0]
        # Where R is flat, neither ratio says anything, and A is kept.
        agreement = (of_mean + 1e-4) / (mean_of + 1e-4)
        kept = ((of_mean + 1e-6) / (_contrast(overall, guide) + 1e-6)).sqrt()
        agrees = _step(agreement, chosen.agreement_low, chosen.agreement_high)
        return agrees * _step(kept, chosen.contrast_low, chosen.contrast_high)

    def _is_new(
        self, edited: Tensor, reconstructed: Tensor, matrix: Tensor, local: _Moments, error: Tensor
    ) -> Float[Tensor, "1 y x"]:
        """1 where the residual is well above the model's own error, 0 where it is not; by cell."""
        a, b = _split(_at_pixels(_functions(matrix, local, self.settings.radius), edited))
        residual = edited - _multiply(a, reconstructed) - b
        size = _box(_pool(residual.square().mean(dim=0, keepdim=True), self.cell), 1).sqrt()
        return _step(size / error, self.settings.error_low, self.settings.error_high)


def _fit_overall(
    moments: Float[Tensor, "25 y x"], weights: Float[Tensor, "1 y x"]
) -> Float[Tensor, "1 1 3 3"]:
    """A over the whole frame, where weights are 1. Colours that hardly vary there are all changed alike."""
    weights = weights + 1e-6
    whole = _Moments.of((moments * weights).sum(dim=(1, 2), keepdim=True) / weights.sum())
    variance = whole.guide.diagonal(dim1=-2, dim2=-1).mean()
    gain = whole.cross.diagonal(dim1=-2, dim2=-1).mean() / (variance + 1e-12)
    return whole.fit(1e-4 * variance + 1e-12, gain * torch.eye(3, dtype=moments.dtype, device=moments.device))


def apply_map(color_map: ColorMap, source: Frames, rows: int | None = None) -> Frames:
    """Give the output frame (h, w, 3), of the source's size; computed on the map's device.

    `rows` are computed at once; by default as many as hold BAND_PIXELS.
    """
    height, width = source.shape[:2]
    rows = rows or max(1, BAND_PIXELS // width)
    channels = torch.cat([color_map.matrix.flatten(0, 1), color_map.offset])[None]
    # First to the source's height, at the model's width; then band by band to the source's width.
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


def has_own_texture(edited: Frames, reconstructed: Frames, cell: int, share: float = 0.65) -> bool:
    """Say whether the texture is the edit's own over most of the frame, as in pixel art or a drawing.

    Counted are the cells in which the edit has edges at all (mean squared difference between neighbouring
    pixels above 0.0003). In how many of them does an affine function of R explain less than a fifth of those
    edges? With nano, on 40 playground clips and 6 real ones: 0.72 to 0.95 in pixel art; at most 0.35 in the
    other styles, 0.57 in edits of a part. Between lies `share`. Clips are (t, h, w, 3), at the model's size;
    some nine of their frames are looked at.
    """
    radius, regularization = 3, 1e-3
    unexplained = textured = 0
    some = slice(None, None, -(-len(edited) // 9))
    for frame, again in zip(edited[some], reconstructed[some], strict=True):
        e, r = (_to_unit(x, torch.device("cpu")) for x in (frame, again))
        local = _Moments.of(_box(_moments(e, r, r, cell), radius))
        functions = _functions(local.fit(regularization), local, radius)
        a, b = _split(_at_pixels(functions, e))
        edges, others = (_box(_pool(_edges(x), cell), radius) for x in (e, e - _multiply(a, r) - b))
        has_edges = edges > 3e-4
        textured += int(has_edges.sum())
        unexplained += int((has_edges & (others > 0.8 * edges)).sum())
    return textured > 0 and unexplained / textured > share


@dataclass(frozen=True)
class _Moments:
    """Means and covariances of E and R in neighbourhoods (y, x)."""

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
        """From the means of `_moments`."""
        edit, reconstructed = moments[:3], moments[3:6]
        products = rearrange(moments[6:24], "(n i j) y x -> n y x i j", n=2, i=3)
        cross = products[0] - torch.einsum("iyx,jyx->yxij", edit, reconstructed)
        guide = products[1] - torch.einsum("iyx,jyx->yxij", reconstructed, reconstructed)
        return cls(edit, reconstructed, cross, guide, moments[24:])

    def fit(self, regularization: float | Tensor, prior: Tensor | float = 0.0) -> Float[Tensor, "y x 3 3"]:
        """A = (cov(E, R) + eps prior) (cov(R) + eps)^-1, with eps the regularization."""
        eps = regularization * torch.eye(3, dtype=self.guide.dtype, device=self.guide.device)
        right = self.cross + regularization * prior
        return torch.linalg.solve(self.guide + eps, right, left=False)


def _functions(matrix: Float[Tensor, "y x 3 3"], local: _Moments, radius: int) -> Float[Tensor, "12 y x"]:
    """A and b of each cell: it lies in many neighbourhoods, and the mean of their functions is its own."""
    offset = local.edit - torch.einsum("yxij,jyx->iyx", matrix, local.reconstructed)
    return _box(torch.cat([rearrange(matrix, "y x i j -> (i j) y x"), offset]), radius)


def _at_pixels(x: Float[Tensor, "k y x"], like: Float[Tensor, "3 h w"]) -> Float[Tensor, "k h w"]:
    """From cells to the pixels of a frame."""
    return F.interpolate(x[None].float(), like.shape[-2:], mode="bilinear", align_corners=False)[0]


def _split(functions: Float[Tensor, "12 h w"]) -> tuple[Float[Tensor, "3 3 h w"], Float[Tensor, "3 h w"]]:
    return rearrange(functions[:9], "(i j) h w -> i j h w", i=3), functions[9:]


def _multiply(matrix: Float[Tensor, "3 3 h w"], x: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    return torch.einsum("ijhw,jhw->ihw", matrix, x)


def _moments(e: Tensor, r: Tensor, s: Tensor, cell: int) -> Float[Tensor, "25 y x"]:
    """Means over cells of E, R, E R^T, R R^T and (S - R)^2."""
    e, r, s = e.double(), r.double(), s.double()  # variances are small differences of large numbers
    products = [torch.einsum("ihw,jhw->ijhw", x, r).flatten(0, 1) for x in (e, r)]
    return _pool(torch.cat([e, r, *products, (s - r).square().mean(dim=0, keepdim=True)]), cell)


def _to_unit(frame: Tensor | Frames, device: torch.device) -> Float[Tensor, "3 h w"]:
    return rearrange(torch.as_tensor(frame).to(device), "h w c -> c h w").float() / 255


def _edges(x: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 h w"]:
    """Sum of the squared differences to the next pixels, to the right and below."""
    right, below = F.pad(x.diff(dim=-1), (0, 1)), F.pad(x.diff(dim=-2), (0, 0, 0, 1))
    return (right.square() + below.square()).sum(dim=0, keepdim=True)


def _pool(x: Float[Tensor, "k h w"], cell: int) -> Float[Tensor, "k y x"]:
    return F.avg_pool2d(x, cell, ceil_mode=True)


def _box(x: Float[Tensor, "k y x"], radius: int) -> Float[Tensor, "k y x"]:
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def _grow(x: Float[Tensor, "1 y x"], radius: int) -> Float[Tensor, "1 y x"]:
    return F.max_pool2d(x, 2 * radius + 1, 1, radius)


def _box_matrix(matrix: Float[Tensor, "y x 3 3"], radius: int) -> Float[Tensor, "y x 3 3"]:
    return rearrange(_box(rearrange(matrix, "y x i j -> (i j) y x"), radius), "(i j) y x -> y x i j", i=3)


def _contrast(matrix: Float[Tensor, "#y #x 3 3"], guide: Float[Tensor, "y x 3 3"]) -> Float[Tensor, "y x"]:
    """Variance of A R, summed over colours."""
    return (matrix @ guide * matrix).sum(dim=(-2, -1))


def _step(x: Tensor, low: float, high: float) -> Tensor:
    """From 0 at `low` to 1 at `high`, smoothly."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def _resize(x: Float[Tensor, "1 k h w"], height: int, width: int) -> Tensor:
    """As `resize_frames`."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)
