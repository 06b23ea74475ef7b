"""The playground's instructions and drawings, as data.

A thing is drawn from primitives (kind, paint, coordinates) in a box with x to the right and y down, both in
[-1, 1]. The paints `body`, `dark` and `light` follow the thing's color; others are fixed colors. Phrasings
are templates; the last one of each list, and the pairs (noun, color) of `HELD_OUT_PAIRS`, are held out of
training.
"""

from __future__ import annotations

from typing import Literal, get_args

Operation = Literal["swap", "recolor", "remove", "add", "style"]
"""Kinds of edit. Swaps and recolorings are of the category change."""

Noun = Literal["dog", "corgi", "cat", "bird", "fish", "car", "tree", "house", "ball", "star", "heart", "cube"]
"""Things that a scene can contain."""

RGB = tuple[int, int, int]
Primitive = tuple[str, str, tuple[float, ...]]

COLORS: dict[str, RGB] = {
    "red": (215, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 60),
    "green": (55, 165, 75),
    "blue": (55, 105, 220),
    "purple": (145, 75, 200),
    "pink": (250, 140, 190),
    "white": (242, 242, 242),
}

PAINTS: dict[str, RGB] = {
    "ink": (30, 26, 34),
    "snow": (250, 250, 250),
    "glass": (185, 225, 245),
    "wood": (115, 75, 45),
    "roof": (160, 60, 50),
    "beak": (250, 170, 40),
    "leaf_eye": (120, 210, 90),
}

# Natural color of each thing, and the color that it never has in training.
THINGS: dict[str, tuple[RGB, str]] = {
    "dog": ((135, 85, 50), "blue"),
    "corgi": ((240, 150, 55), "purple"),
    "cat": ((120, 122, 135), "yellow"),
    "bird": ((70, 150, 235), "pink"),
    "fish": ((35, 175, 180), "red"),
    "car": ((215, 45, 45), "green"),
    "tree": ((55, 140, 65), "orange"),
    "house": ((230, 200, 150), "purple"),
    "ball": ((145, 75, 200), "yellow"),
    "star": ((250, 215, 50), "green"),
    "heart": ((235, 60, 110), "blue"),
    "cube": ((60, 95, 190), "pink"),
}
HELD_OUT_PAIRS = frozenset((noun, color) for noun, (_, color) in THINGS.items())

# fmt: off
DRAWINGS: dict[str, tuple[Primitive, ...]] = {
    "dog": (
        ("polygon", "body", (-0.95, -0.55, -0.78, -0.62, -0.5, 0.0, -0.62, 0.2)),
        ("polygon", "dark", (-0.62, 0.1, -0.42, 0.1, -0.42, 0.95, -0.62, 0.95)),
        ("polygon", "dark", (0.12, 0.1, 0.32, 0.1, 0.32, 0.95, 0.12, 0.95)),
        ("polygon", "body", (-0.42, 0.1, -0.22, 0.1, -0.22, 0.95, -0.42, 0.95)),
        ("polygon", "body", (-0.08, 0.1, 0.12, 0.1, 0.12, 0.95, -0.08, 0.95)),
        ("ellipse", "body", (-0.7, -0.3, 0.42, 0.42)),
        ("ellipse", "body", (0.1, -0.9, 0.78, -0.1)),
        ("ellipse", "light", (0.5, -0.55, 1.0, -0.12)),
        ("ellipse", "dark", (0.02, -0.85, 0.32, -0.05)),
        ("ellipse", "ink", (0.48, -0.68, 0.62, -0.54)),
        ("ellipse", "ink", (0.86, -0.48, 1.0, -0.32)),
    ),
    "corgi": (
        ("ellipse", "snow", (-1.0, -0.2, -0.72, 0.15)),
        ("polygon", "snow", (-0.68, 0.4, -0.46, 0.4, -0.46, 0.95, -0.68, 0.95)),
        ("polygon", "snow", (0.14, 0.4, 0.36, 0.4, 0.36, 0.95, 0.14, 0.95)),
        ("ellipse", "body", (-0.92, -0.22, 0.5, 0.72)),
        ("ellipse", "snow", (0.0, 0.0, 0.56, 0.74)),
        ("polygon", "body", (0.06, -0.35, 0.1, -1.0, 0.48, -0.55)),
        ("polygon", "body", (0.52, -0.58, 0.84, -1.0, 0.9, -0.35)),
        ("ellipse", "body", (0.05, -0.72, 0.93, 0.12)),
        ("ellipse", "snow", (0.4, -0.35, 0.97, 0.12)),
        ("ellipse", "ink", (0.36, -0.42, 0.5, -0.28)),
        ("ellipse", "ink", (0.78, -0.22, 0.95, -0.06)),
    ),
    "cat": (
        ("polygon", "dark", (0.3, 0.7, 0.75, 0.6, 0.7, -0.1, 0.95, -0.15, 1.0, 0.75, 0.4, 0.95)),
        ("ellipse", "body", (-0.55, -0.2, 0.55, 0.97)),
        ("polygon", "body", (-0.55, -0.5, -0.55, -1.0, -0.1, -0.75)),
        ("polygon", "body", (0.1, -0.75, 0.55, -1.0, 0.55, -0.5)),
        ("ellipse", "body", (-0.58, -0.88, 0.58, 0.12)),
        ("ellipse", "light", (-0.28, 0.15, 0.28, 0.85)),
        ("ellipse", "leaf_eye", (-0.36, -0.52, -0.12, -0.26)),
        ("ellipse", "leaf_eye", (0.12, -0.52, 0.36, -0.26)),
        ("polygon", "ink", (-0.1, -0.16, 0.1, -0.16, 0.0, -0.02)),
    ),
    "bird": (
        ("polygon", "dark", (-1.0, -0.25, -0.4, -0.1, -0.45, 0.3, -1.0, 0.25)),
        ("ellipse", "body", (-0.65, -0.45, 0.55, 0.6)),
        ("ellipse", "body", (0.1, -0.75, 0.78, -0.05)),
        ("polygon", "beak", (0.72, -0.52, 1.0, -0.36, 0.72, -0.24)),
        ("ellipse", "light", (-0.2, 0.1, 0.45, 0.58)),
        ("polygon", "dark", (-0.35, -0.25, 0.25, -0.2, -0.25, 0.75, -0.5, 0.35)),
        ("ellipse", "ink", (0.42, -0.55, 0.58, -0.39)),
    ),
    "fish": (
        ("polygon", "dark", (-0.5, 0.0, -1.0, -0.55, -0.88, 0.0, -1.0, 0.55)),
        ("polygon", "dark", (-0.25, -0.4, 0.1, -0.8, 0.35, -0.4)),
        ("ellipse", "body", (-0.65, -0.52, 0.98, 0.52)),
        ("polygon", "light", (-0.12, -0.5, 0.12, -0.52, 0.12, 0.52, -0.12, 0.5)),
        ("ellipse", "snow", (0.44, -0.3, 0.72, -0.02)),
        ("ellipse", "ink", (0.54, -0.22, 0.68, -0.08)),
    ),
    "car": (
        ("polygon", "dark", (-0.6, 0.0, -0.35, -0.52, 0.3, -0.52, 0.62, 0.0)),
        ("polygon", "glass", (-0.42, -0.05, -0.26, -0.4, -0.04, -0.4, -0.04, -0.05)),
        ("polygon", "glass", (0.06, -0.05, 0.06, -0.4, 0.24, -0.4, 0.44, -0.05)),
        ("polygon", "body", (-1.0, 0.45, -0.95, -0.05, 0.7, -0.08, 0.98, 0.12, 1.0, 0.45)),
        ("ellipse", "ink", (-0.75, 0.2, -0.23, 0.72)),
        ("ellipse", "ink", (0.28, 0.2, 0.8, 0.72)),
        ("ellipse", "snow", (-0.6, 0.35, -0.38, 0.57)),
        ("ellipse", "snow", (0.43, 0.35, 0.65, 0.57)),
    ),
    "tree": (
        ("polygon", "wood", (-0.16, 0.2, 0.16, 0.2, 0.2, 0.97, -0.2, 0.97)),
        ("ellipse", "dark", (-0.85, -0.45, 0.2, 0.4)),
        ("ellipse", "dark", (-0.2, -0.45, 0.85, 0.4)),
        ("ellipse", "body", (-0.65, -0.97, 0.65, 0.2)),
    ),
    "house": (
        ("polygon", "body", (-0.75, -0.1, 0.75, -0.1, 0.75, 0.95, -0.75, 0.95)),
        ("polygon", "roof", (-0.97, -0.08, 0.0, -0.95, 0.97, -0.08)),
        ("polygon", "wood", (-0.2, 0.35, 0.2, 0.35, 0.2, 0.95, -0.2, 0.95)),
        ("polygon", "glass", (-0.6, 0.1, -0.3, 0.1, -0.3, 0.42, -0.6, 0.42)),
        ("polygon", "glass", (0.3, 0.1, 0.6, 0.1, 0.6, 0.42, 0.3, 0.42)),
    ),
    "ball": (
        ("ellipse", "body", (-0.8, -0.8, 0.8, 0.8)),
        ("polygon", "snow", (-0.79, -0.12, 0.79, -0.12, 0.79, 0.16, -0.79, 0.16)),
        ("ellipse", "light", (-0.5, -0.62, -0.1, -0.3)),
    ),
    "star": (
        ("polygon", "body", (0.0, -1.0, 0.27, -0.33, 0.97, -0.3, 0.42, 0.16, 0.6, 0.86,
                             0.0, 0.46, -0.6, 0.86, -0.42, 0.16, -0.97, -0.3, -0.27, -0.33)),
        ("polygon", "light", (0.0, -0.5, 0.14, -0.12, 0.0, 0.2, -0.14, -0.12)),
    ),
    "heart": (
        ("ellipse", "body", (-0.92, -0.82, 0.06, 0.16)),
        ("ellipse", "body", (-0.06, -0.82, 0.92, 0.16)),
        ("polygon", "body", (-0.85, -0.08, 0.0, -0.5, 0.85, -0.08, 0.0, 0.92)),
        ("ellipse", "light", (-0.66, -0.62, -0.3, -0.26)),
    ),
    "cube": (
        ("polygon", "light", (-0.85, -0.45, -0.35, -0.9, 0.85, -0.9, 0.4, -0.45)),
        ("polygon", "dark", (0.4, -0.45, 0.85, -0.9, 0.85, 0.4, 0.4, 0.85)),
        ("polygon", "body", (-0.85, -0.45, 0.4, -0.45, 0.4, 0.85, -0.85, 0.85)),
    ),
}

# fmt: on

NOUNS: tuple[Noun, ...] = get_args(Noun)

# (sky top, sky bottom, far hills, ground), in muted colors, so that things stand out.
BACKGROUNDS: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    "meadow": ((120, 180, 230), (205, 230, 240), (130, 180, 150), (150, 200, 120)),
    "desert": ((150, 195, 225), (245, 230, 200), (215, 175, 125), (235, 205, 150)),
    "snowfield": ((150, 175, 205), (225, 232, 240), (190, 205, 220), (235, 240, 246)),
    "beach": ((110, 190, 225), (190, 230, 240), (90, 160, 190), (240, 222, 175)),
    "hills": ((165, 190, 215), (225, 225, 215), (120, 140, 120), (165, 170, 120)),
    "dusk": ((120, 110, 160), (225, 175, 175), (120, 100, 130), (150, 130, 130)),
}

PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}

STYLES: dict[str, tuple[str, ...]] = {
    "black and white": ("black and white", "monochrome"),
    "sepia": ("sepia", "old photo"),
    "night": ("night", "moonlight"),
    "sunset": ("sunset", "golden hour"),
    "inverted": ("inverted", "negative"),
    "pixel art": ("pixel art", "8-bit"),
    "warm": ("warm", "warm-toned", "warmer"),
    "cold": ("cold", "cool", "colder"),
    "vintage": ("vintage", "retro"),
    "faded": ("faded", "washed-out"),
    "high contrast": ("high contrast", "contrasty", "punchy"),
    "brighter": ("brighter", "lighter"),
    "darker": ("darker", "dimmer"),
    "more colorful": ("more colorful", "more saturated", "more vivid"),
    "less colorful": ("less colorful", "less saturated", "less vivid"),
    "posterized": ("posterized", "flat-colored"),
    "pencil sketch": ("pencil sketch", "pencil drawing"),
    "blurred": ("blurred", "blurry", "out-of-focus"),
    "foggy": ("foggy", "misty", "hazy"),
    "snowy": ("snowy", "wintry"),
    "rainy": ("rainy", "drizzly"),
}
CLASSIC_STYLES = ("black and white", "sepia", "night", "sunset", "inverted", "pixel art")
"""Styles of triplets at realism 0."""

COMPARATIVES = frozenset(
    name
    for names in STYLES.values()
    for name in names
    if name.startswith(("more ", "less "))
    or name in ("warmer", "colder", "brighter", "lighter", "darker", "dimmer")
)
"""Names of styles that need the phrasings of `comparative` instead of `style`."""

# {old}: thing in the source; {new}: thing in the target, with its article; {a_style}: {style} with article.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "swap": (
        "replace the {old} with {new}",
        "turn the {old} into {new}",
        "change the {old} to {new}",
        "swap the {old} for {new}",
        "put {new} where the {old} is",
    ),
    "recolor": (
        "make the {old} {color}",
        "change the color of the {old} to {color}",
        "paint the {old} {color}",
        "turn the {old} {color}",
        "give the {old} a {color} color",
    ),
    "remove": (
        "remove the {old}",
        "delete the {old}",
        "erase the {old}",
        "take away the {old}",
        "get rid of the {old}",
    ),
    "add": (
        "add {new} in the {place}",
        "put {new} in the {place}",
        "place {new} in the {place} corner",
        "insert {new} at the {place}",
        "let {new} appear in the {place}",
    ),
    "comparative": (
        "make it {style}",
        "give the video {a_style} look",
        "make the video {style}",
        "make the whole clip {style}",
        "turn this into {a_style} clip",
    ),
    "swap for picture": (
        "replace the {old} with this",
        "swap the {old} for this one",
        "turn the {old} into this one",
        "put this where the {old} is",
        "change the {old} to what the picture shows",
    ),
    "add picture": (
        "add this in the {place}",
        "put this in the {place}",
        "insert this one at the {place}",
        "let this appear in the {place}",
        "place what the picture shows in the {place} corner",
    ),
    "style": (
        "make it {style}",
        "give the video {a_style} look",
        "apply {a_style} style",
        "change the style to {style}",
        "render the whole clip in {style} style",
    ),
}


def with_article(phrase: str) -> str:
    """Prefix the indefinite article: `dog` -> `a dog`, `8-bit` -> `an 8-bit`."""
    return f"{'an' if phrase[0] in 'aeiou8' else 'a'} {phrase}"
