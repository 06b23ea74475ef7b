"""The playground: a procedural world of triplets that a small model learns in an hour.

A scene is a moving background with one to three things. An edit turns the source scene into the target scene,
so the target clip, its caption and the edited region are exact. Triplets are pure functions of (seed, split,
index).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.io.video.clip import Frames
from rvedit.playground import grammar
from rvedit.playground.drawing import draw_frame
from rvedit.playground.grammar import Noun, Operation
from rvedit.playground.realism import draw_realistic_frame
from rvedit.playground.scene import Scene, Thing
from rvedit.playground.styles import stylize
from rvedit.playground.synonyms import reword

Split = Literal["train", "test", "test_phrasing", "test_pair"]
SPLITS: tuple[Split, ...] = get_args(Split)
FRAME_RATE = 12


@dataclass(frozen=True)
class PlaygroundTriplet:
    """A source scene, an instruction, and the edited scene."""

    id: str
    source: Scene
    target: Scene
    instruction: str
    category: Category
    picture: Scene | None = None
    """The new thing in another place, if the instruction calls it "this"."""

    @property
    def target_caption(self) -> str:
        """Caption of the target, ℓ*."""
        return self.target.caption


def sample_triplet(
    seed: int,
    index: int,
    split: Split = "train",
    operations: Mapping[Operation, float] | None = None,
    new_things: Mapping[Noun, float] | None = None,
    realism: float = 0.0,
    synonyms: float = 0.0,
    has_picture: bool = False,
) -> PlaygroundTriplet:
    """Return triplet `index` of a split; equal arguments give equal triplets.

    Splits: `train`; `test` (held-out scenes); `test_phrasing` (held-out phrasings); `test_pair` (a held-out
    pair of noun and color in the target). `operations` are sampling weights of the operations; without them
    categories are equally likely, and three changes in five are swaps. `new_things` are sampling weights of
    the things that swaps and additions insert, 1 by default. `synonyms` is the probability that a term of the
    instruction is replaced by a synonym; the scenes do not depend on it.

    `realism` is 0 for flat drawings, up to 1 for pictures with the statistics of photographs. Above 0, styles
    are all of `grammar.STYLES` instead of `grammar.CLASSIC_STYLES`; scenes and other edits stay the same.

    With `has_picture` the edit is a swap or an addition of what a picture shows.
    """
    if not 0 <= realism <= 1:
        raise UserError(f"realism is {realism}: give a number from 0 to 1")
    if split not in SPLITS:
        raise UserError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    pairs_held_out = split == "test_pair"
    if has_picture:
        operations = {name: (operations or {}).get(name, 1.0) for name in ("swap", "add")}
    operation = _sample_operation(rng, pairs_held_out, operations)
    source = _sample_scene(rng, max_things=3 if operation != "add" else 2)
    category, edit = _OPERATIONS[operation]
    target, values = edit(rng, source, _NewThings(pairs_held_out, new_things or {}))
    number = -1 if split == "test_phrasing" else int(rng.integers(len(grammar.PHRASINGS[operation]) - 1))
    phrasing = {"swap": "swap for picture", "add": "add picture"}[operation] if has_picture else operation
    template = grammar.PHRASINGS[phrasing][number]
    if realism:
        # Its own generator, so that all other draws are those at realism 0.
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
        look = int(rng.integers(2**32))
        if operation == "style":
            target, values = _apply_style(rng, source, list(grammar.STYLES))
            if values["style"] in grammar.COMPARATIVES:
                template = grammar.PHRASINGS["comparative"][number]
        source, target = (replace(scene, realism=realism, look=look) for scene in (source, target))
    instruction = template.format(**values)
    if synonyms:  # with its own generator too
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 2])
        instruction = reword(instruction, rng, synonyms)
    return PlaygroundTriplet(
        id=f"{split}_{seed}_{index:06d}",
        source=source,
        target=target,
        instruction=instruction,
        category=category,
        picture=_picture_of(source, target) if has_picture else None,
    )


def _picture_of(source: Scene, target: Scene) -> Scene:
    """Return a scene with the target's new thing alone, large, in another place."""
    (new,) = (thing for thing in target.things if thing not in source.things)
    others = [name for name in grammar.BACKGROUNDS if name != target.background]
    background = others[len(new.name) % len(others)]
    return replace(target, background=background, things=(Thing(new.noun, new.color, radius=0.4),))


def render(scene: Scene, num_frames: int, height: int, width: int, first_frame: int = 0) -> Frames:
    """Return the frames of a scene: uint8, shape (num_frames, height, width, 3)."""
    draw = draw_realistic_frame if scene.realism else draw_frame
    frames = np.stack([draw(scene, first_frame + i, height, width) for i in range(num_frames)])
    return stylize(frames, scene.style, first_frame) if scene.style else frames


def edit_mask(source: Frames, target: Frames, threshold: int = 8) -> NDArray[np.bool_]:
    """Return where two clips differ by more than `threshold` gray levels: shape (t, h, w)."""
    difference = np.abs(source.astype(np.int16) - target.astype(np.int16)).max(axis=-1)
    return np.asarray(difference > threshold)


# --- sampling -------------------------------------------------------------------------------------------


def _sample_operation(
    rng: np.random.Generator, pairs_held_out: bool, weights: Mapping[Operation, float] | None
) -> Operation:
    if weights:
        shares = np.array(list(weights.values())) / sum(weights.values())
        return cast(Operation, str(rng.choice(list(weights), p=shares)))
    category = str(rng.choice(["change", "add"] if pairs_held_out else [c.value for c in Category]))
    if category == "change":
        return "recolor" if pairs_held_out or rng.random() < 0.4 else "swap"
    return cast(Operation, category)


def _sample_scene(rng: np.random.Generator, max_things: int) -> Scene:
    count = min(int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])), max_things)
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
    rng: np.random.Generator, noun: str, held_out: bool = False, unlike: Thing | None = None
) -> str:
    """Return a color that the noun may have in this split, visibly different from that of `unlike`."""
    avoid = np.array(unlike.rgb if unlike else (-999, -999, -999))
    choices = [
        color
        for color, rgb in grammar.COLORS.items()
        if ((noun, color) in grammar.HELD_OUT_PAIRS) == held_out and np.abs(avoid - np.array(rgb)).sum() > 150
    ]
    return str(rng.choice(choices))


# --- edits: (rng, source, new_things) -> (target, values for the template) ------------------------------


@dataclass(frozen=True)
class _NewThings:
    """Distribution of the things that an edit inserts."""

    held_out: bool
    """Whether noun and color must be a pair of `HELD_OUT_PAIRS`, instead of any other."""
    weights: Mapping[Noun, float]
    """Sampling weights, 1 by default."""

    def sample_noun(self, rng: np.random.Generator, source: Scene) -> str:
        """Return a noun that is not in the scene yet."""
        nouns = [noun for noun in grammar.NOUNS if noun not in {thing.noun for thing in source.things}]
        if not self.weights:
            return str(rng.choice(nouns))
        weights = np.array([self.weights.get(noun, 1.0) for noun in nouns])
        return str(rng.choice(nouns, p=weights / weights.sum()))


def _old_name(rng: np.random.Generator, thing: Thing) -> str:
    # Nouns are unique within a scene, so the color may be left out.
    return thing.name if rng.random() < 0.3 else thing.noun


def _replace_thing(source: Scene, index: int, *new: Thing) -> Scene:
    return replace(source, things=source.things[:index] + new + source.things[index + 1 :])


def _swap(rng: np.random.Generator, source: Scene, new_things: _NewThings) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    noun = new_things.sample_noun(rng, source)
    color = _sample_color(rng, noun, new_things.held_out) if rng.random() < 0.4 else None
    new = replace(old, noun=noun, color=color)
    values = {"old": _old_name(rng, old), "new": grammar.with_article(new.name)}
    return _replace_thing(source, index, new), values


def _recolor(rng: np.random.Generator, source: Scene, new_things: _NewThings) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    if new_things.held_out:  # natural colors differ from the held-out ones
        old = replace(old, color=None)
        source = _replace_thing(source, index, old)
    color = _sample_color(rng, old.noun, new_things.held_out, unlike=old)
    new = replace(old, color=color)
    return _replace_thing(source, index, new), {"old": _old_name(rng, old), "color": color}


def _remove(rng: np.random.Generator, source: Scene, new_things: _NewThings) -> tuple[Scene, dict[str, str]]:
    index = int(rng.integers(len(source.things)))
    old = source.things[index]
    return _replace_thing(source, index), {"old": _old_name(rng, old)}


def _add(rng: np.random.Generator, source: Scene, new_things: _NewThings) -> tuple[Scene, dict[str, str]]:
    # The new thing does not move and is centered in a free quarter, so the instruction determines it.
    taken = {(thing.x < 0.5, thing.y < 0.5) for thing in source.things}
    free = [name for name, (x, y) in grammar.PLACES.items() if (x < 0.5, y < 0.5) not in taken]
    place = str(rng.choice(free))
    noun = new_things.sample_noun(rng, source)
    is_colored = new_things.held_out or rng.random() < 0.6
    color = _sample_color(rng, noun, new_things.held_out) if is_colored else None
    x, y = grammar.PLACES[place]
    new = Thing(noun=noun, color=color, x=x, y=y)
    values = {"new": grammar.with_article(new.name), "place": place}
    return replace(source, things=(*source.things, new)), values


def _style(rng: np.random.Generator, source: Scene, new_things: _NewThings) -> tuple[Scene, dict[str, str]]:
    return _apply_style(rng, source, grammar.CLASSIC_STYLES)


def _apply_style(
    rng: np.random.Generator, source: Scene, styles: Sequence[str]
) -> tuple[Scene, dict[str, str]]:
    style = str(rng.choice(styles))
    name = str(rng.choice(grammar.STYLES[style]))
    return replace(source, style=style), {"style": name, "a_style": grammar.with_article(name)}


_OPERATIONS = {
    "swap": (Category.CHANGE, _swap),
    "recolor": (Category.CHANGE, _recolor),
    "remove": (Category.REMOVE, _remove),
    "add": (Category.ADD, _add),
    "style": (Category.STYLE, _style),
}
