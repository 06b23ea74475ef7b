"""Synonyms of the words of the grammar, for training sentences; and words that are held out of them.

With word vectors (`rvedit.models.word_vectors`) an editor can understand words of no training sentence, if
training shows it that words with similar vectors mean the same. `SYNONYMS` are drawn in training, by
`data.synonyms` of a recipe. The words of `HELD_OUT_WORDS` never are: they measure whether it works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

# Terms that `grammar` does not have are never met in an instruction.
# fmt: off
NOUNS: dict[str, tuple[str, ...]] = {
    "dog": ("hound", "terrier", "poodle", "labrador", "spaniel", "retriever", "beagle", "bulldog", "mutt",
            "doggy", "canine", "pup", "collie", "rottweiler", "mastiff", "pooch", "dogs"),
    "cat": ("feline", "kitty", "tabby", "tomcat", "siamese", "pussycat", "cats", "wildcat", "house cat"),
    "bird": ("sparrow", "robin", "pigeon", "parrot", "eagle", "hawk", "crow", "finch", "songbird", "gull",
             "dove", "owl", "woodpecker", "birds", "pelican", "raven"),
    "fish": ("trout", "tuna", "carp", "cod", "herring", "mackerel", "sardine", "shark", "catfish", "minnow",
             "salmon", "fishes", "piranha"),
    "car": ("vehicle", "auto", "sedan", "taxi", "cab", "suv", "jeep", "hatchback", "coupe", "minivan",
            "convertible", "roadster", "van", "cars", "pickup"),
    "tree": ("oak", "pine", "maple", "willow", "birch", "elm", "cedar", "fir", "shrub", "bush", "sapling",
             "palm", "trees"),
    "house": ("home", "cabin", "hut", "villa", "mansion", "farmhouse", "barn", "shack", "building",
              "residence", "hotel", "dwelling", "houses"),
    "ball": ("sphere", "balls", "football", "baseball", "basketball", "globe", "orb", "balloon",
             "soccer ball"),
    "star": ("stars", "pentagram", "asterisk", "comet", "sun"),
    "heart": ("hearts", "valentine", "love heart"),
    "cube": ("box", "block", "brick", "cubes", "dice", "square", "carton", "container", "boxes"),
}
COLORS: dict[str, tuple[str, ...]] = {
    "red": ("scarlet", "ruby", "cherry", "burgundy", "maroon", "vermilion", "reddish", "bloody", "dark red",
            "bright red", "wine"),
    "orange": ("apricot", "amber", "pumpkin", "carrot", "peach", "citrus", "mango", "bright orange"),
    "yellow": ("golden", "gold", "mustard", "yellowish", "banana", "blond", "bright yellow", "saffron"),
    "green": ("lime", "olive", "jade", "mint", "greenish", "grassy", "leafy", "dark green", "light green",
              "moss"),
    "blue": ("navy", "cobalt", "sapphire", "cyan", "bluish", "teal", "turquoise", "light blue", "dark blue",
             "aqua"),
    "purple": ("lavender", "lilac", "mauve", "plum", "amethyst", "purplish", "indigo", "dark purple",
               "orchid"),
    "pink": ("rose", "magenta", "pinkish", "rosy", "coral", "light pink", "hot pink"),
    "white": ("pale", "whitish", "cream", "pearl", "chalk", "alabaster", "milky", "pure white"),
}
STYLES: dict[str, tuple[str, ...]] = {
    "black and white": ("gray", "grey", "monochromatic", "noir", "colorless", "greyscale", "without color"),
    "sepia": ("brown", "brownish", "daguerreotype", "old photograph"),
    "night": ("evening", "nocturnal", "moonlit", "darkness", "late night", "starry", "nights"),
    "sunset": ("sundown", "sunrise", "dawn", "evening sun"),
    "inverted": ("reversed", "opposite", "flipped", "upside down", "reverse"),
    "pixel art": ("pixels", "mosaic", "blocky", "arcade game", "nintendo", "pixel"),
    "warm": ("hot", "cozy", "warmer", "heated", "toasty", "warmth"),
    "cold": ("cool", "colder", "icy", "frosty", "frigid", "freezing", "cooler"),
    "vintage": ("retro", "classic", "nostalgic", "old fashioned", "old"),
    "faded": ("fading", "washed out", "worn", "weathered", "bleached"),
    "high contrast": ("strong contrast", "contrasting", "sharp contrast", "stark", "more contrast"),
    "brighter": ("bright", "brightened", "shining", "sunnier", "glowing", "lighter", "more light"),
    "darker": ("dark", "dim", "shadowy", "gloomy", "murky", "darkened", "less light"),
    "more colorful": ("colorful", "vivid", "vibrant", "saturated", "multicolored", "more color",
                      "more colors"),
    "less colorful": ("muted", "dull", "subdued", "less colourful", "bland", "less color"),
    "posterized": ("poster", "flat colors", "cartoon"),
    "pencil sketch": ("drawing", "sketch", "line drawing", "drawn", "pencil", "doodle", "sketched"),
    "blurred": ("blurry", "fuzzy", "unfocused", "smeared", "indistinct", "blur"),
    "foggy": ("misty", "fog", "mist", "cloudy", "smoky", "haze"),
    "snowy": ("snow", "snowfall", "blizzard", "snowing", "snowstorm", "winter"),
    "rainy": ("rain", "raining", "stormy", "showers", "downpour", "wet"),
}
VERBS: dict[str, tuple[str, ...]] = {
    "replace": ("exchange", "supplant", "interchange", "replacing"),
    "swap": ("switch", "trade", "swapping"),
    "change": ("alter", "adjust", "convert", "changing", "vary"),
    "turn": ("morph", "convert", "make", "turning"),
    "paint": ("color", "dye", "colour", "painting"),
    "remove": ("take out", "discard", "clear", "removing", "lose"),
    "delete": ("cut", "wipe", "omit", "deleting", "exclude"),
    "erase": ("wipe out", "rub out", "hide", "erasing"),
    "get rid of": ("do away with", "dispose of"),
    "add": ("include", "create", "draw", "adding"),
    "insert": ("introduce", "embed", "inserting"),
    "put": ("set", "lay", "bring", "putting"),
    "place": ("install", "stick", "placing"),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "top": ("upper",),
    "bottom": ("lower",),
    "video": ("movie", "film", "footage"),
    "look": ("appearance", "feel"),
}
SYNONYMS: Mapping[str, tuple[str, ...]] = {**NOUNS, **COLORS, **STYLES, **VERBS, **OTHERS}
"""Words and phrases that may stand for a term of an instruction, by the term."""

HELD_OUT_WORDS: Mapping[str, str] = {
    # nouns
    "puppy": "dog", "dachshund": "dog", "kitten": "cat", "seagull": "bird", "canary": "bird",
    "goldfish": "fish", "automobile": "car", "limousine": "car", "spruce": "tree", "poplar": "tree",
    "cottage": "house", "bungalow": "house", "volleyball": "ball", "crate": "cube",
    # colors
    "crimson": "red", "tangerine": "orange", "lemon": "yellow", "emerald": "green", "azure": "blue",
    "violet": "purple", "fuchsia": "pink", "ivory": "white",
    # styles
    "grayscale": "black and white", "nighttime": "night", "midnight": "night", "twilight": "sunset",
    "inverse": "inverted", "pixelated": "pixel art", "chilly": "cold", "antique": "vintage",
    "dusky": "darker", "drab": "less colorful", "smoggy": "foggy", "drizzle": "rainy",
    # verbs
    "eliminate": "remove", "substitute": "replace", "modify": "change", "transform": "turn", "tint": "paint",
    "position": "place",
}
"""Words that no training sentence has, and the term that each stands for."""
# fmt: on

_TERM = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True))})\b")
_ARTICLE = re.compile(r"\ban? (?=(\w))")


def reword(instruction: str, rng: np.random.Generator, probability: float) -> str:
    """Return an instruction in which each term of `SYNONYMS` is replaced by a synonym at this probability."""

    def draw(match: re.Match[str]) -> str:
        synonyms = SYNONYMS[match[0]]
        return str(rng.choice(synonyms)) if rng.random() < probability else match[0]

    return with_articles(_TERM.sub(draw, instruction))


def with_articles(instruction: str) -> str:
    """Return an instruction with `a` or `an` as the next word needs."""
    return _ARTICLE.sub(lambda match: "an " if match[1] in "aeiou8" else "a ", instruction)
