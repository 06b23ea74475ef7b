"""Edits by words of no training sentence, compared with the same edits by the words that they stand for.

Each held-out word of `rvedit.playground.synonyms` is put in place of its term in the instructions of held-out
clips: `remove the puppy` for `remove the dog`. Terms that the playground does not have are left out.

    python benchmarks/nano_words.py --out benchmarks/results/nano_words.json
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import SEED
from tqdm import tqdm

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import SUCCESS_GAIN, edit_gain
from rvedit.pipelines.loading import load_pipeline
from rvedit.playground.synonyms import COLORS, HELD_OUT_WORDS, NOUNS, STYLES, VERBS, with_articles
from rvedit.playground.world import edit_mask, render, sample_triplet

GROUPS = {"nouns": NOUNS, "colors": COLORS, "styles": STYLES, "verbs": VERBS}
SCANNED = 3_000
"""Triplets that are searched for a term."""


def matters(term, triplet):
    """Return whether the edit depends on a term of its instruction."""
    if not re.search(rf"\b{term}\b", triplet.instruction):
        return False
    if term in COLORS:  # a color that only names the old thing adds nothing
        before, after = (
            [t.color for t in scene.things].count(term) for scene in (triplet.source, triplet.target)
        )
        return after > before
    return True


def triplets_with(term, count, realism):
    """Return the first held-out triplets whose edit depends on a term."""
    found = []
    for index in range(SCANNED):
        if len(found) < count and matters(
            term, triplet := sample_triplet(SEED, index, "test", realism=realism)
        ):
            found.append(triplet)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=4, help="clips for each held-out word")
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--realism", type=float, default=0.0, help="above 0: all styles; default: six of them"
    )
    args = parser.parse_args()
    pipe = load_pipeline(args.model, args.device.type)
    settings = EditConfig(detail=0)

    def gain(triplet, instruction):
        source, target = (render(s, args.num_frames, args.size, args.size) for s in scenes(triplet))
        mask = edit_mask(source, target) | (triplet.category.value == "style")
        return edit_gain(source, edit_clip(pipe, source, instruction, settings), target, mask)

    words, groups = {}, defaultdict(list)
    for word, term in tqdm(HELD_OUT_WORDS.items()):
        pairs = []
        for triplet in triplets_with(term, args.count, args.realism):
            reworded = with_articles(re.sub(rf"\b{term}\b", word, triplet.instruction))
            pairs.append((gain(triplet, triplet.instruction), gain(triplet, reworded)))
        if pairs:
            words[word] = {"term": term, "gains": pairs}
            groups[next(name for name, terms in GROUPS.items() if term in terms)] += pairs
    groups["all"] = [pair for pairs in groups.values() for pair in pairs]
    table = {
        name: {
            "clips": len(pairs),
            "success": dict(
                zip(("term", "word"), (np.array(pairs) > SUCCESS_GAIN).mean(axis=0), strict=True)
            ),
            "gain": dict(zip(("term", "word"), np.mean(pairs, axis=0), strict=True)),
        }
        for name, pairs in groups.items()
    }
    rows = [
        [name, str(row["clips"]), *(f"{row['success'][kind]:.0%}" for kind in ("term", "word"))]
        for name, row in table.items()
    ]
    print_table(["held-out words", "clips", "success, term", "success, word"], rows)
    write_json(args, {"groups": table, "words": words})


def scenes(triplet):
    return triplet.source, triplet.target


if __name__ == "__main__":
    main()
