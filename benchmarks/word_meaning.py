"""Do the word vectors tell what a word of no training sentence means? No editor is trained or run.

Classifiers that know the terms of the grammar and their training synonyms name the term of a word: of the
held-out words, and of each training synonym when it is left out. The vectors are those of the package, or
only their part from GloVe.

    python benchmarks/word_meaning.py --out benchmarks/results/word_meaning.json
"""

from __future__ import annotations

import numpy as np
from _common import arguments, print_table, write_json

from rvedit.models.word_vectors import load_word_vectors
from rvedit.playground.synonyms import COLORS, HELD_OUT_WORDS, NOUNS, STYLES, VERBS

GROUPS = {"nouns": NOUNS, "colors": COLORS, "styles": STYLES, "verbs": VERBS}
SAME = {"delete": "remove", "erase": "remove", "get rid of": "remove", "swap": "replace", "turn": "change"}
SAME |= {"paint": "change", "insert": "add", "put": "add", "place": "add"}
"""Verbs that ask for the same operation as another."""
GLOVE_WIDTH = 50


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Vectors:
    """Vectors of words and phrases, from some columns of the package's."""

    def __init__(self, columns):
        words = load_word_vectors()
        self.rows = unit(words.vectors.numpy()[:, columns])
        self.index = {word: index for index, word in enumerate(words.words)}

    def __call__(self, phrase):
        """Return the mean vector of a phrase's words, or None."""
        rows = [self.rows[self.index[word]] for word in phrase.split() if word in self.index]
        return unit(np.mean(rows, axis=0)) if rows else None


def nearest_word(known, terms, rows):
    return [terms[index] for index in (rows @ known.T).argmax(axis=1)]


def nearest_mean(known, terms, rows):
    names = sorted(set(terms))
    means = np.stack([known[[term == name for term in terms]].mean(axis=0) for name in names])
    return [names[index] for index in (rows @ unit(means).T).argmax(axis=1)]


def linear(known, terms, rows, penalty=0.3):
    """Fit a ridge regression to indicators, in which all terms weigh the same."""
    names = sorted(set(terms))
    targets = np.array([[term == name for name in names] for term in terms], float)
    weights = (targets / targets.sum(axis=0)).sum(axis=1, keepdims=True)
    known, rows = (np.c_[x, np.ones(len(x))] for x in (known, rows))
    moments = known.T @ (known * weights) + penalty * len(names) / known.shape[1] * np.eye(known.shape[1])
    solution = np.linalg.solve(moments, known.T @ (targets * weights))
    return [names[index] for index in (rows @ solution).argmax(axis=1)]


CLASSIFIERS = {"nearest word": nearest_word, "nearest mean": nearest_mean, "linear": linear}


def meaning(term):
    return SAME.get(term, term)


def evaluate(vectors):
    """Return, by classifier and group: right and all held-out words, errors, right and all left-out words."""
    results = {name: {} for name in CLASSIFIERS}
    for group, synonyms in GROUPS.items():
        pairs = [(word, meaning(term)) for term, words in synonyms.items() for word in (term, *words)]
        pairs = [(word, term) for word, term in pairs if vectors(word) is not None]
        held_out = [(word, meaning(term)) for word, term in HELD_OUT_WORDS.items() if term in synonyms]
        known, rows = (np.stack([vectors(word) for word, _ in ps]) for ps in (pairs, held_out))
        terms = [term for _, term in pairs]
        for name, classify in CLASSIFIERS.items():
            found = classify(known, terms, rows)
            errors = {word: got for (word, term), got in zip(held_out, found, strict=True) if got != term}
            left_out = []
            for index, (word, term) in enumerate(pairs):
                if word in synonyms:
                    continue  # the term itself
                rest = [i for i in range(len(pairs)) if i != index]
                (got,) = classify(known[rest], [terms[i] for i in rest], known[index][None])
                left_out.append((word, term, got))
            results[name][group] = {
                "held_out": [len(held_out) - len(errors), len(held_out)],
                "errors": errors,
                "left_out": [sum(term == got for _, term, got in left_out), len(left_out)],
                "left_out_errors": {
                    word: f"{got}, not {term}" for word, term, got in left_out if got != term
                },
            }
    return results


def main() -> None:
    args = arguments(__doc__, chooses_device=False).parse_args()
    kinds = {"GloVe": slice(GLOVE_WIDTH), "all": slice(None)}
    results = {kind: evaluate(Vectors(columns)) for kind, columns in kinds.items()}
    rows = []
    for kind, by_classifier in results.items():
        for name, groups in by_classifier.items():
            for which in ("held_out", "left_out"):
                counts = [groups[group][which] for group in GROUPS]
                counts.append([sum(column) for column in zip(*counts, strict=True)])
                rows.append([f"{kind}, {name}, {which}", *(f"{a}/{b}" for a, b in counts)])
    print_table(["vectors, classifier, words", *GROUPS, "all"], rows)
    write_json(args, results)


if __name__ == "__main__":
    main()
