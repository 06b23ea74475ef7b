"""Whole words and their vectors: the tokenizer, frozen embeddings, synonyms, and words that are held out."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_clip
from diffusers import AutoencoderKLWan
from transformers import AutoTokenizer

from rvedit import NANO
from rvedit.io.errors import UserError
from rvedit.models.model_spec import model_spec
from rvedit.models.nano_tokenizer import SPECIAL_TOKENS, WORD_START, build_word_tokenizer
from rvedit.models.presets import NANO_VAE
from rvedit.models.word_vectors import WORDS_FILE, load_word_vectors
from rvedit.pipelines.checkpoints import build_from_scratch, load_checkpoint, use_word_vectors
from rvedit.pipelines.model_card import WORD_SOURCES
from rvedit.playground import grammar
from rvedit.playground.synonyms import HELD_OUT_WORDS, SYNONYMS, reword
from rvedit.playground.world import sample_triplet
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

WORDS = load_word_vectors()
WORD_VECTORS = (
    "model.preset=nano",
    "model.init_from=nano",
    "model.word_vectors=true",
    "model.routing_depth=4",
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(WORDS.words)


def words_of(*phrases):
    return {word for phrase in phrases for word in re.findall("[a-z]+", re.sub(r"{\w+}", "", phrase))}


def test_the_file_is_small_and_names_its_sources():
    assert WORDS_FILE.stat().st_size <= 2_000_000
    notice = (WORDS_FILE.parent / "README.md").read_text()
    assert "PDDL" in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert len(WORDS.words) == len(set(WORDS.words)) == len(WORDS.vectors) == 10_000
    torch.testing.assert_close(WORDS.vectors.norm(dim=1), torch.ones(10_000), rtol=2e-3, atol=0)


def test_the_words_of_the_playground_and_the_held_out_words_have_vectors():
    phrases = [*grammar.NOUNS, *grammar.COLORS, *grammar.PLACES, *SYNONYMS]
    phrases += [
        text for lists in (grammar.STYLES, grammar.PHRASINGS, SYNONYMS) for t in lists.values() for text in t
    ]
    missing = (words_of(*phrases) | set(HELD_OUT_WORDS)) - set(WORDS.words)
    assert missing <= {"posterized", "drizzly", "contrasty"}  # not in GloVe, or very rare


def test_each_word_is_one_token_in_any_place(tokenizer):
    first = len(tokenizer) - len(WORDS.words)
    ids = tokenizer(list(WORDS.words)).input_ids
    assert ids == [[first + index] for index in range(len(WORDS.words))]
    tokens = tokenizer.tokenize("Make the (puppy) black-and-white!")
    assert [t for t in tokens if len(t) > 1] == [
        WORD_START + w for w in ("make", "the", "puppy", "black", "and", "white")
    ]
    assert tokenizer.tokenize("the dog.") == tokenizer.tokenize(" The dog") == tokenizer.tokenize("the dog")


@pytest.mark.parametrize("text", ["zxqv", "schnauzerdoodle", "ünïcödé 猫", "dog4 99 !a"])
def test_other_words_are_bytes_and_come_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert max(ids) < len(tokenizer)
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert len(ids) > 1


def test_special_tokens_are_those_of_nano_and_are_not_words(tokenizer):
    old = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    assert all(tokenizer.convert_tokens_to_ids(t) == old.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS)
    assert tokenizer.tokenize("<|im_start|>dog<|im_end|>") == [
        "<|im_start|>",
        WORD_START + "dog",
        "<|im_end|>",
    ]


def test_similar_words_get_similar_values_and_the_given_ones_stay():
    given = [WORDS.words.index(word) for word in ("car", "dog", "tree", "red", "remove")]
    values = torch.eye(5)
    found = WORDS.interpolate(given, values)
    torch.testing.assert_close(found[given], values, rtol=0, atol=2e-3)
    for word, nearest in (("automobile", 0), ("puppy", 1), ("oak", 2), ("crimson", 3), ("delete", 4)):
        assert int(found[WORDS.words.index(word)].argmax()) == nearest, word
    assert torch.allclose(WORDS.interpolate(given, 2 * values), 2 * found, atol=1e-5)


def test_nano_still_knows_its_own_words():
    old, new = load_checkpoint(NANO), load_checkpoint(NANO)
    use_word_vectors(new)
    for name, tokenizer in (("mllm", "mllm_tokenizer"), ("text_encoder", "tokenizer")):
        rows = []
        for pipeline in (old, new):
            ids = getattr(pipeline, tokenizer)(
                "replace the dog with a corgi", add_special_tokens=False
            ).input_ids
            rows.append(getattr(pipeline, name).get_input_embeddings().weight[ids[:6]])
        assert rows[0].shape == rows[1].shape
        kept = [i for i in range(6) if i != 4]  # not "a", which is shorter than a word of the tables
        error = (rows[0] - rows[1])[kept].norm() / rows[0][kept].norm()
        assert error < 0.01, name


def test_nano_keeps_its_other_weights_and_is_below_40_mb(tmp_path: Path):
    old, new = load_checkpoint(NANO), load_checkpoint(NANO)
    use_word_vectors(new)
    for name in ("mllm", "text_encoder"):
        before, after = (getattr(p, name).state_dict() for p in (old, new))
        changed = (
            {key for key in before if not torch.equal(before[key], after[key])}
            if before.keys() == after.keys()
            else None
        )
        assert changed is not None
        assert all("embed_tokens" in key or "shared" in key or "lm_head" in key for key in changed)
        special = slice(len(SPECIAL_TOKENS))
        tables = [getattr(p, name).get_input_embeddings().weight[special] for p in (old, new)]
        assert torch.equal(*tables)
    again = new.mllm.get_input_embeddings().weight.clone()
    use_word_vectors(new)
    assert torch.equal(again, new.mllm.get_input_embeddings().weight)

    new.to(dtype=torch.bfloat16)
    new.save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 40_000_000
    loaded = load_checkpoint(tmp_path)
    text = "turn the puppy into an automobile"
    assert loaded.tokenizer(text).input_ids == new.tokenizer(text).input_ids
    assert loaded.mllm_tokenizer.get_vocab() == new.mllm_tokenizer.get_vocab()
    assert loaded(random_clip(5, 64, 64), text, num_inference_steps=1).frames.shape[1] == 5


def test_a_new_model_has_them_too():
    torch.manual_seed(0)
    texts = [sample_triplet(0, index).instruction for index in range(200)]
    pipeline = build_from_scratch(
        model_spec("nano"), texts, AutoencoderKLWan(**NANO_VAE), None, shift=3.0, seed=0
    )
    use_word_vectors(pipeline)
    dog, puppy, red = (pipeline.tokenizer(word).input_ids[0] for word in ("dog", "puppy", "red"))
    for name in ("mllm", "text_encoder"):
        table = getattr(pipeline, name).get_input_embeddings().weight
        assert torch.cosine_similarity(table[dog], table[puppy], dim=0) > 0.4
        assert torch.cosine_similarity(table[dog], table[red], dim=0) < 0.4


def test_word_vectors_stay_in_training_and_the_rest_does_not(recipe_of, tmp_path):
    options = (
        *WORD_VECTORS,
        "steps=2",
        "data.synonyms=0.5",
        "checkpoint_every=2",
        "optimizer.weight_decay=0.1",
    )
    _, recipe = recipe_of("words", *options, "ema_decay=0.9")
    list(train(recipe, tmp_path, "cpu"))
    start, end = load_checkpoint(NANO), load_checkpoint(tmp_path / "words" / "model")
    use_word_vectors(start)
    for name in ("mllm", "text_encoder"):
        tables = [getattr(p, name).get_input_embeddings().weight for p in (start, end)]
        assert torch.equal(*tables), name
        assert any(
            not torch.equal(a, b)
            for a, b in zip(getattr(start, name).parameters(), getattr(end, name).parameters(), strict=True)
        ), name
    assert set(WORD_SOURCES) <= set(end.provenance.data)
    assert "license: apache-2.0" in (tmp_path / "words" / "model" / "README.md").read_text()


def test_word_vectors_are_for_small_models(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {preset: wan2.2-5b, word_vectors: true, init_from: nano}\n")
    with pytest.raises(UserError, match=r"model\.word_vectors: wan2\.2-5b has its own words"):
        load_recipe(path)


def test_scenes_do_not_depend_on_synonyms_and_sentences_do():
    plain, same, all_of_them = (
        [sample_triplet(3, i, synonyms=p) for i in range(200)] for p in (0.0, 0.0, 1.0)
    )
    assert plain == same == [sample_triplet(3, i) for i in range(200)]
    assert all_of_them == [sample_triplet(3, i, synonyms=1.0) for i in range(200)]
    for a, b in zip(plain, all_of_them, strict=True):
        assert (a.source, a.target, a.category, a.target_caption) == (
            b.source,
            b.target,
            b.category,
            b.target_caption,
        )
    assert np.mean([a.instruction != b.instruction for a, b in zip(plain, all_of_them, strict=True)]) > 0.85


def test_about_as_many_words_are_replaced_as_asked():
    terms = [reword("red", np.random.default_rng(i), 0.25) for i in range(800)]
    assert 0.17 < np.mean([term != "red" for term in terms]) < 0.33  # more than five deviations
    assert {*terms} == {"red", *SYNONYMS["red"]}


def test_articles_follow_the_synonym():
    found = {reword("replace the star with a tree", np.random.default_rng(i), 1.0) for i in range(200)}
    assert any("with an oak" in text or "for an oak" in text for text in found)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou8]", text) for text in found)


def test_no_training_sentence_has_a_held_out_word():
    assert len(HELD_OUT_WORDS) == 40
    assert set(HELD_OUT_WORDS.values()) <= set(SYNONYMS)
    held_out = set(HELD_OUT_WORDS)
    assert not held_out & words_of(*SYNONYMS, *(text for texts in SYNONYMS.values() for text in texts))
    for probability in (0.0, 0.5, 1.0):
        for index in range(3_000):
            triplet = sample_triplet(7, index, realism=index % 2, synonyms=probability)
            assert not held_out & words_of(triplet.instruction, triplet.target_caption), triplet.instruction


def test_a_synonym_has_one_meaning():
    verbs = {"color", "colour", "convert", "exchange"}  # several operations
    seen: dict[str, str] = {}
    for term, synonyms in SYNONYMS.items():
        for synonym in set(synonyms) - verbs:
            assert seen.setdefault(synonym, term) == term, synonym
            assert synonym not in SYNONYMS, synonym
