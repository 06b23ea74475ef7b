"""The playground: a small procedural world of triplets that can be learned in an hour.

A scene is a moving background with one to three things; an edit turns the source scene into the target
scene, so the target, its caption and the edited region are known exactly. Everything is a pure function of
(seed, split, index).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.playground import grammar
from rvedit.playground.grammar import Noun, Operation

Split = Literal["train", "test", "test_phrasing", "test_pair"]
SPLITS: tuple[Split, ...] = get_args(Split)
SUPERSAMPLING = 2
FRAME_RATE = 12
# Change has two operations of its own.
OPERATIONS: dict[Operation, Category] = {
    "swap": Category.CHANGE,
    "recolor": Category.CHANGE,
    "remove": Category.REMOVE,
    "add": Category.ADD,
    "style": Category.STYLE,
}

Frames = NDArray[np.uint8]  # t h w 3


@dataclass(frozen=True)
class Thing:
    """One drawn thing; positions and sizes in fractions of the frame, speeds in fractions a frame."""

    noun: str
    color: str | None = None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.22
    drift: float = 0.0
    bob: float = 0.0
    phase: float = 0.0

    @property
    def name(self) -> str:
        """`dog` or `red car`."""
        return f"{self.color} {self.noun}" if self.color else self.noun

    @property
    def rgb(self) -> grammar.RGB:
        """The colour of the thing's body."""
        return grammar.COLORS[self.color] if self.color else grammar.NATURAL[self.noun]


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw a clip."""

    background: str
    horizon: float
    pan: float
    hills_phase: float
    things: tuple[Thing, ...] = field(default_factory=tuple)
    style: str | None = None

    @property
    def caption(self) -> str:
        """A description of the clip, the ℓ* of the reference branch."""
        names = [grammar.with_article(thing.name) for thing in self.things]
        subject = "nothing" if not names else " and ".join(names)
        return f"{subject}, {self.background} in the background" + (f", {self.style}" if self.style else "")


@dataclass(frozen=True)
class PlaygroundTriplet:
    """A source scene, an instruction, and the scene that the instruction asks for."""

    id: str
    source: Scene
    target: Scene
    instruction: str
    category: Category

    @property
    def target_caption(self) -> str:
        """ℓ*: the caption of the target."""
        return self.target.caption


def sample_triplet(
    seed: int,
    index: int,
    split: Split = "train",
    operations: Mapping[Operation, float] | None = None,
    new_things: Mapping[Noun, float] | None = None,
) -> PlaygroundTriplet:
    """Draw triplet number `index` of a split; equal arguments give equal triplets.

    Splits: `train`; `test` (held-out scenes); `test_phrasing` (held-out wordings); `test_pair` (a held-out
    combination of noun and colour in the target). `operations` are weights of what is drawn; without them the
    categories come equally often, and three changes in five are swaps. `new_things` are weights of what swaps
    and additions bring in, 1 for a thing without one.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    pairs_held_out = split == "test_pair"
    operation = _weighted_operation(rng, operations) if operations else _sample_operation(rng, pairs_held_out)
    source = _sample_scene(rng, most_things=3 if operation != "add" else 2)
    target, words = _EDITS[operation](rng, source, _Terms(pairs_held_out, new_things or {}))
    phrasings = grammar.PHRASINGS[operation]
    template = phrasings[-1] if split == "test_phrasing" else str(rng.choice(phrasings[:-1]))
    return PlaygroundTriplet(
        id=f"{split}_{seed}_{index:06d}",
        source=source,
        target=target,
        instruction=template.format(**words),
        category=OPERATIONS[operation],
    )


def render(scene: Scene, num_frames: int, height: int, width: int, first_frame: int = 0) -> Frames:
    """Draw a scene: uint8, shape (num_frames, height, width, 3)."""
    h, w = height * SUPERSAMPLING, width * SUPERSAMPLING
    backdrop = _sky(scene, h, w)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        canvas = backdrop.copy()
        draw = ImageDraw.Draw(canvas)
        _draw_landscape(draw, scene, first_frame + i, h, w)
        for thing in scene.things:
            _draw_thing(draw, thing, first_frame + i, h, w)
        frames[i] = np.asarray(canvas.reduce(SUPERSAMPLING))
    return stylize(frames, scene.style) if scene.style else frames


def edit_mask(source: Frames, target: Frames, threshold: int = 8) -> NDArray[np.bool_]:
    """Where the edit changes the clip by more than `threshold` grey levels: shape (t, h, w)."""
    difference = np.abs(source.astype(np.int16) - target.astype(np.int16)).max(axis=-1)
    return np.asarray(difference > threshold)


def stylize(frames: Frames, style: str) -> Frames:
    """Apply one of the world's styles to a clip."""
    x = frames.astype(np.float32)
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "black and white":
        x = np.repeat(luma[..., None], 3, axis=-1)
    elif style == "sepia":
        x = luma[..., None] * np.array([1.05, 0.85, 0.6], np.float32) + np.array([20, 8, 0], np.float32)
    elif style == "night":
        x = x * np.array([0.22, 0.28, 0.5], np.float32) + np.array([4, 8, 28], np.float32)
    elif style == "sunset":
        x = x * np.array([0.85, 0.55, 0.35], np.float32) + np.array([60, 18, 10], np.float32)
    elif style == "inverted":
        x = 255 - x
    elif style == "pixel art":
        x = _pixelate(x)
    else:
        raise UserError(f"style is {style!r}: choose one of {', '.join(grammar.STYLES)}")
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def _pixelate(x: NDArray[np.float32], blocks: int = 16, step: int = 64) -> NDArray[np.float32]:
    """About `blocks` square blocks along the short side, colours rounded to `step` levels."""
    height, width = x.shape[1:3]
    block = max(1, min(height, width) // blocks)
    rows, columns = (np.arange(n) // block for n in (height, width))
    coarse = np.add.reduceat(
        np.add.reduceat(x, np.arange(0, height, block), 1), np.arange(0, width, block), 2
    )
    area = np.outer(np.bincount(rows), np.bincount(columns))[None, :, :, None]
    quantized = np.round(coarse / area / step) * step
    return np.asarray(quantized[:, rows][:, :, columns], np.float32)


# --- drawing a triplet at random ------------------------------------------------------------------------


def _sample_operation(rng: np.random.Generator, pairs_held_out: bool) -> Operation:
    category = rng.choice(["change", "add"] if pairs_held_out else [c.value for c in Category])
    if category == "change":
        return "recolor" if pairs_held_out or rng.random() < 0.4 else "swap"
    return cast(Operation, str(category))


def _weighted_operation(rng: np.random.Generator, weights: Mapping[Operation, float]) -> Operation:
    shares = np.array(list(weights.values())) / sum(weights.values())
    return list(weights)[int(rng.choice(len(weights), p=shares))]


def _sample_scene(rng: np.random.Generator, most_things: int) -> Scene:
    count = min(int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])), most_things)
    places = rng.permutation(list(grammar.PLACES))[:count]
    nouns = rng.permutation(list(grammar.NOUNS))[:count]
    return Scene(
        background=str(rng.choice(list(grammar.BACKGROUNDS))),
        horizon=rng.uniform(0.5, 0.7),
        pan=rng.uniform(-0.02, 0.02),
        hills_phase=rng.uniform(0, 2 * math.pi),
        things=tuple(_sample_thing(rng, str(n), str(p)) for n, p in zip(nouns, places, strict=True)),
    )


def _sample_thing(rng: np.random.Generator, noun: str, place: str) -> Thing:
    x, y = grammar.PLACES[place]
    return Thing(
        noun=noun,
        color=_sample_color(rng, noun) if rng.random() < 0.5 else None,
        x=x + rng.uniform(-0.06, 0.06),
        y=y + rng.uniform(-0.06, 0.06),
        radius=rng.uniform(0.19, 0.24),
        drift=rng.uniform(-0.012, 0.012),
        bob=rng.uniform(0.0, 0.025),
        phase=rng.uniform(0, 2 * math.pi),
    )


def _sample_color(
    rng: np.random.Generator, noun: str, held_out: bool = False, other_than: Thing | None = None
) -> str:
    """A colour that the noun may have in this split, and that is seen to differ from another thing's."""
    here = np.array(other_than.rgb if other_than else (-999, -999, -999))
    choices = [
        color
        for color, rgb in grammar.COLORS.items()
        if ((noun, color) in grammar.HELD_OUT_PAIRS) == held_out and np.abs(here - np.array(rgb)).sum() > 150
    ]
    return str(rng.choice(choices))


# --- the edits: (rng, source, terms) -> (target, words for the template) --------------------------------


@dataclass(frozen=True)
class _Terms:
    """What is laid down for the thing that an edit brings in."""

    held_out: bool
    """Its noun and colour are a pair that training never draws."""
    new_things: Mapping[Noun, float]
    """Weights, 1 for a thing without one."""

    def new_noun(self, rng: np.random.Generator, source: Scene) -> str:
        """One that the scene does not hold yet."""
        nouns = [noun for noun in grammar.NOUNS if noun not in {thing.noun for thing in source.things}]
        if not self.new_things:
            return str(rng.choice(nouns))
        weights = np.array([self.new_things.get(noun, 1.0) for noun in nouns])
        return str(rng.choice(nouns, p=weights / weights.sum()))


def _old_name(rng: np.random.Generator, thing: Thing) -> str:
    """Nouns are unique within a scene, so the colour may be left out."""
    return thing.name if rng.random() < 0.3 else thing.noun


def _with_thing(source: Scene, index: int, thing: Thing) -> Scene:
    things = list(source.things)
    things[index] = thing
    return replace(source, things=tuple(things))


def _swap(rng: np.random.Generator, source: Scene, terms: _Terms) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    noun = terms.new_noun(rng, source)
    color = _sample_color(rng, noun, terms.held_out) if rng.random() < 0.4 else None
    new = replace(old, noun=noun, color=color)
    return _with_thing(source, index, new), {
        "old": _old_name(rng, old),
        "new": grammar.with_article(new.name),
    }


def _recolor(rng: np.random.Generator, source: Scene, terms: _Terms) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    if terms.held_out:  # in its natural colour no thing looks like its held-out one
        old = replace(old, color=None)
        source = _with_thing(source, index, old)
    color = _sample_color(rng, old.noun, terms.held_out, other_than=old)
    return _with_thing(source, index, replace(old, color=color)), {"old": _old_name(rng, old), "color": color}


def _remove(rng: np.random.Generator, source: Scene, terms: _Terms) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    return replace(source, things=source.things[:index] + source.things[index + 1 :]), {
        "old": _old_name(rng, old)
    }


def _add(rng: np.random.Generator, source: Scene, terms: _Terms) -> tuple[Scene, dict[str, str]]:
    """The new thing stands still in the middle of a free quarter: the words say all there is to know."""
    taken = {(thing.x < 0.5, thing.y < 0.5) for thing in source.things}
    free = [name for name, (x, y) in grammar.PLACES.items() if (x < 0.5, y < 0.5) not in taken]
    place = str(rng.choice(free))
    noun = terms.new_noun(rng, source)
    color = _sample_color(rng, noun, terms.held_out) if terms.held_out or rng.random() < 0.6 else None
    x, y = grammar.PLACES[place]
    new = Thing(noun=noun, color=color, x=x, y=y)
    words = {"new": grammar.with_article(new.name), "place": place}
    return replace(source, things=(*source.things, new)), words


def _style(rng: np.random.Generator, source: Scene, terms: _Terms) -> tuple[Scene, dict[str, str]]:
    style = str(rng.choice(list(grammar.STYLES)))
    word = str(rng.choice(grammar.STYLES[style]))
    return replace(source, style=style), {"style": word, "a_style": grammar.with_article(word)}


_EDITS = {"swap": _swap, "recolor": _recolor, "remove": _remove, "add": _add, "style": _style}


# --- drawing ----------------------------------------------------------------------------------------------


def _sky(scene: Scene, height: int, width: int) -> Image.Image:
    top, bottom, _, _ = (np.array(c, np.float32) for c in grammar.BACKGROUNDS[scene.background])
    depth = np.minimum(np.linspace(0, 1 / scene.horizon, height, dtype=np.float32), 1)[:, None]
    column = top + (bottom - top) * depth
    pixels = np.broadcast_to(column[:, None], (height, width, 3))
    return Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))


def _draw_landscape(draw: ImageDraw.ImageDraw, scene: Scene, frame: int, height: int, width: int) -> None:
    _, _, hills, ground = grammar.BACKGROUNDS[scene.background]
    x = np.linspace(0, 1, 17)
    shift = scene.hills_phase + 2 * math.pi * scene.pan * frame
    ridge = scene.horizon - 0.07 - 0.05 * np.sin(2 * math.pi * 1.5 * x + shift)
    outline = [(float(a * width), float(b * height)) for a, b in zip(x, ridge, strict=True)]
    draw.polygon([*outline, (width, height), (0, height)], fill=hills)
    draw.rectangle((0, scene.horizon * height, width, height), fill=ground)


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, frame: int, height: int, width: int) -> None:
    # A triangle wave turns the drift around, so that a long clip keeps its things in the frame.
    travel = thing.drift * frame
    swing = 0.12 * (2 / math.pi) * math.asin(math.sin(travel / 0.12 * math.pi / 2))
    center = np.array([thing.x + swing, thing.y + thing.bob * math.sin(thing.phase + 0.5 * frame)])
    scale = thing.radius * min(height, width)
    mirror = -1.0 if thing.drift < 0 else 1.0
    body = np.array(thing.rgb, np.float32)
    paints = {"body": body, "dark": body * 0.62, "light": body * 0.45 + 255 * 0.55}
    for kind, paint, coordinates in grammar.DRAWINGS[thing.noun]:
        fill = tuple(int(c) for c in paints[paint]) if paint in paints else grammar.PAINTS[paint]
        points = np.array(coordinates).reshape(-1, 2) * [mirror, 1.0] * scale + center * [width, height]
        if kind == "ellipse":
            draw.ellipse((*points.min(axis=0), *points.max(axis=0)), fill=fill)
        else:
            draw.polygon([(float(a), float(b)) for a, b in points], fill=fill)
