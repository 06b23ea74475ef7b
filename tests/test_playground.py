"""The procedural world: deterministic, honest splits, known targets."""

import re
import zlib
from collections import Counter

import numpy as np
import pytest

from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.playground import grammar
from rvedit.playground.world import SPLITS, edit_mask, render, sample_triplet


def clips(triplet, num_frames=5, size=64):
    return render(triplet.source, num_frames, size, size), render(triplet.target, num_frames, size, size)


def test_equal_arguments_give_equal_triplets():
    a, b = sample_triplet(3, 17), sample_triplet(3, 17)
    assert a == b
    assert np.array_equal(clips(a)[1], clips(b)[1])
    assert sample_triplet(4, 17) != a
    assert sample_triplet(3, 17, "test") != a


def test_triplets_at_realism_0_are_those_that_nano_was_trained_on():
    checksum = 0
    for split in SPLITS:
        for index in range(40):
            triplet = sample_triplet(7, index, split)
            checksum = zlib.crc32((triplet.instruction + triplet.target_caption).encode(), checksum)
            for scene in (triplet.source, triplet.target):
                checksum = zlib.crc32(render(scene, 2, 48, 64, first_frame=index).tobytes(), checksum)
    assert checksum == 1350620289, "computed before realism existed"


@pytest.mark.parametrize("realism", [0.0, 1.0])
def test_every_edit_is_visible(realism):
    for index in range(60):
        triplet = sample_triplet(0, index, realism=realism)
        source, target = clips(triplet)
        assert edit_mask(source, target).mean() > 0.005, triplet


@pytest.mark.parametrize("category", [Category.CHANGE, Category.REMOVE, Category.ADD])
def test_local_edits_leave_most_of_the_frame_alone(category):
    triplets = [t for t in (sample_triplet(0, i) for i in range(80)) if t.category == category]
    assert len(triplets) > 8
    for triplet in triplets:
        assert edit_mask(*clips(triplet)).mean() < 0.4


def test_categories_are_balanced():
    categories = [sample_triplet(0, index).category for index in range(400)]
    assert all(60 < categories.count(category) < 140 for category in Category)


def test_operations_come_by_their_weights():
    weights = {"swap": 3.0, "style": 1.0}
    drawn = [sample_triplet(0, index, operations=weights) for index in range(400)]
    counts = Counter(triplet.category for triplet in drawn)
    assert set(counts) == {Category.CHANGE, Category.STYLE}
    assert 260 < counts[Category.CHANGE] < 340  # 300, and over four deviations of 9 either way
    for triplet in drawn:
        if triplet.category == Category.CHANGE:
            before, after = ({thing.noun for thing in s.things} for s in (triplet.source, triplet.target))
            assert before != after, "a swap puts another thing there"


def test_new_things_come_by_their_weights():
    assert set(grammar.NOUNS) == set(grammar.DRAWINGS)
    drawn = [sample_triplet(0, i, operations={"swap": 1.0}, new_things={"corgi": 11.0}) for i in range(400)]
    swaps = [[{thing.noun for thing in s.things} for s in (t.source, t.target)] for t in drawn]
    without = [after - before for before, after in swaps if "corgi" not in before]
    share = without.count({"corgi"}) / len(without)
    assert 0.42 < share < 0.68  # 11 in 21 to 11 in 19, and over four deviations of 0.03 either way
    assert len({noun for new in without for noun in new}) == 12, "the others come as well"


def test_things_and_words_agree():
    for index in range(200):
        triplet = sample_triplet(1, index)
        before, after = ({t.noun for t in s.things} for s in (triplet.source, triplet.target))
        if triplet.category == Category.REMOVE:
            (noun,) = before - after
            assert noun in triplet.instruction
            assert noun not in triplet.target_caption
        elif triplet.category == Category.ADD:
            (noun,) = after - before
            assert noun in triplet.instruction
            assert noun in triplet.target_caption
            assert any(place in triplet.instruction for place in grammar.PLACES)


def test_held_out_phrasings_are_not_in_training():
    def matches(template, text):
        pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(template))
        return re.fullmatch(pattern, text) is not None

    unseen = [templates[-1] for templates in grammar.PHRASINGS.values()]
    train = [sample_triplet(0, index).instruction for index in range(500)]
    test = [sample_triplet(0, index, "test_phrasing").instruction for index in range(100)]
    assert not any(matches(template, text) for text in train for template in unseen)
    assert all(any(matches(template, text) for template in unseen) for text in test)


def test_held_out_pairs_appear_in_their_split_alone():
    def pairs(triplet):
        return {(t.noun, t.color) for s in (triplet.source, triplet.target) for t in s.things}

    for split in SPLITS:
        for index in range(200):
            held = pairs(sample_triplet(0, index, split)) & grammar.HELD_OUT_PAIRS
            assert bool(held) == (split == "test_pair"), (split, index)


def test_frames_continue_where_a_clip_ended():
    scene = sample_triplet(0, 1).source
    whole = render(scene, 8, 48, 48)
    assert np.array_equal(whole[3:], render(scene, 5, 48, 48, first_frame=3))


def test_things_stay_in_a_long_clip():
    triplet = next(t for t in (sample_triplet(0, i) for i in range(99)) if t.category == Category.REMOVE)
    source, target = (render(s, 1, 64, 64, first_frame=500) for s in (triplet.source, triplet.target))
    assert edit_mask(source, target).mean() > 0.005


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="split is 'dev': choose one of train, test"):
        sample_triplet(0, 0, "dev")
    with pytest.raises(UserError, match=r"realism is 1.5: give a number from 0 to 1"):
        sample_triplet(0, 0, realism=1.5)
