"""Appendix D.3's aggregation: the paper's own tables, hand-computed cases, and scipy as the measure."""

import numpy as np
import pytest
import scipy.stats
import yaml

from rvedit.evaluation.aggregate import group, item_means, overall_of_cells, table_of
from rvedit.evaluation.scores import Scores
from rvedit.evaluation.statistics import agreement, compare

# Table 1: Overall, then IC, CF, VQ of Local Change, Local Remove, Local Add and Global Style.
TABLE_1 = """
gemini VACE       16.66 37.15  6.46 18.92  5.76  5.37  9.75 11.34  5.22 14.78 29.79 15.10 40.22
gemini Lucy-Edit  49.24 68.09 57.14 63.37  7.68 44.69 46.80 37.64 38.30 39.16 16.17 84.38 87.48
gemini ICVE       52.36 61.58 42.85 64.26 38.73 43.05 58.68 38.13 32.54 51.04 60.66 58.93 77.91
gemini DITTO      36.82 48.29 16.52 57.43  6.05 11.81 36.86 44.25  8.36 49.70 53.79 37.00 71.76
gemini Kiwi-Edit  61.35 81.38 62.23 71.97 66.63 48.27 46.69 47.96 40.46 33.45 70.86 84.19 82.07
gemini RVEDiT     62.48 69.77 70.35 69.42 71.71 41.59 42.80 49.46 55.58 45.09 67.78 82.76 83.48
qwen   VACE       28.41 32.65 16.77 61.28  8.15  8.15 14.42 14.24 10.81 34.42 36.64 36.43 66.91
qwen   Lucy-Edit  49.24 68.09 57.14 63.37  7.68 44.69 46.80 37.64 38.30 39.16 16.17 84.38 87.48
qwen   ICVE       66.56 68.46 76.35 86.11 52.37 63.61 69.05 52.34 59.22 73.69 60.66 58.93 77.91
qwen   DITTO      51.95 51.15 41.63 78.49 11.20 25.78 37.95 45.67 35.70 62.30 74.36 73.64 85.57
qwen   Kiwi-Edit  75.89 85.28 85.46 88.05 82.29 63.58 64.44 63.94 63.33 73.84 73.02 86.66 80.79
qwen   RVEDiT     77.42 78.71 86.43 89.92 84.32 67.08 67.93 59.49 71.73 79.67 72.50 87.64 83.64
"""
CATEGORIES = ("change", "remove", "add", "style")


@pytest.mark.parametrize("line", TABLE_1.strip().splitlines())
def test_table_1s_overall(line):
    _, _, overall, *cells = line.split()
    axes = np.array(cells, float).reshape(4, 3)
    assert overall_of_cells(axes) == pytest.approx(float(overall), abs=0.0051)
    # The same by the whole path: one item with the cell's scores in each category.
    scored = [(name, "a", Scores(*row)) for name, row in zip(CATEGORIES, axes.tolist(), strict=True)]
    assert table_of(group(scored)).overall.value == pytest.approx(float(overall), abs=0.0051)


def test_table_3_and_the_recipes_rows_of_table_2():
    """Cells that the recipes hold as data: Overall of Table 3's cells against Table 2's printed one."""
    from test_recipes import RECIPES

    rows = [yaml.safe_load(path.read_text()).get("paper") for path in RECIPES]
    rows = [row for row in rows if row and row.get("table2") and row.get("table3")]
    assert len(rows) >= 9
    for row in rows:
        cells = [[axes[axis] for axis in ("ic", "cf", "vq")] for axes in row["table3"].values()]
        # The paper's two tables differ by up to 0.06 in one row (w/o both: 71.71 and 71.77).
        assert overall_of_cells(cells) == pytest.approx(row["table2"]["overall"], abs=0.065)


def scores(*rows):
    return [Scores(*map(float, row)) for row in rows]


def test_a_hand_computed_table():
    """Repeats first, then items, axes and categories; a large category weighs no more than a small one."""
    table = table_of(
        {
            "change": {"a": scores((10, 20, 30), (30, 40, 50)), "b": scores((40, 50, 60))},
            "add": {"c": scores((100, 100, 100))},
            "style": {},
        }
    )
    change = table.categories["change"]
    assert [change.axes[axis].value for axis in ("ic", "cf", "vq")] == [30, 40, 50]
    assert (change.score.value, change.items) == (40, 2)
    assert table.overall.value == 70
    assert table.axes["ic"].value == 65
    assert list(table.categories) == ["change", "add"]
    assert (table.categories["add"].score.low, table.categories["add"].score.high) == (100, 100)
    assert table_of({}) is None
    assert table_of({"add": {}}) is None


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 101, (60, 3)).astype(float)
    table = table_of({"add": {str(i): scores(row) for i, row in enumerate(values)}})
    expected = scipy.stats.bootstrap(
        (values.mean(axis=1),), np.mean, n_resamples=9999, method="percentile", rng=rng
    ).confidence_interval
    assert table.overall.low == pytest.approx(expected.low, abs=0.6)
    assert table.overall.high == pytest.approx(expected.high, abs=0.6)
    assert table.overall.low < table.overall.value < table.overall.high


def random_side(seed, shift=0.0, items=range(40)):
    rng = np.random.default_rng(seed)
    values = {i: rng.normal(50, 15, 3) for i in range(40)}
    noise = np.random.default_rng(seed + 1)
    return {
        name: {str(i): scores(values[i] + shift + noise.normal(0, 3, 3)) for i in items}
        for name in ("change", "add")
    }


def test_two_variants_are_compared_on_what_both_have():
    a, b = random_side(0), random_side(0, shift=4.0, items=range(10, 50 - 10))
    results = compare(a, b)
    overall = results["overall"]["score"]
    assert (overall.items, overall.only_a, overall.only_b) == (60, 20, 0)
    assert overall.mean.value == pytest.approx(4.0, abs=0.1)
    assert overall.mean.low <= 4.0 <= overall.mean.high
    assert overall.p_value < 1e-3
    ours = item_means({k: v for k, v in b["add"].items()})[:, 0]
    theirs = item_means({k: a["add"][k] for k in b["add"]})[:, 0]
    assert results["add"]["ic"].mean.value == pytest.approx((ours - theirs).mean())
    same = compare(a, a)["overall"]["score"]
    assert (same.mean.value, same.p_value) == (0.0, 1.0)
    assert compare(a, {"style": {"z": scores((1, 1, 1))}}) == {}


def test_the_permutation_test_is_exact_for_few_items():
    """Three items that all rise: of the 8 signs 2 are as extreme."""
    a = {"add": {str(i): scores((10, 10, 10)) for i in range(3)}}
    b = {"add": {str(i): scores((10 + i + 1,) * 3) for i in range(3)}}
    assert compare(a, b)["add"]["score"].p_value == pytest.approx(2 / 8)


def test_judges_agree_with_themselves_and_not_with_the_reverse():
    a = random_side(3)
    same = agreement(a, a)["ic"]
    assert (same.spearman, same.kendall, same.mean_difference) == pytest.approx((1, 1, 0))
    reverse = {
        n: {i: [Scores(*(100 - x for x in s[0].values))] for i, s in items.items()} for n, items in a.items()
    }
    against = agreement(a, reverse)["vq"]
    assert (against.spearman, against.kendall) == pytest.approx((-1, -1))
    one = agreement({"add": {"x": scores((1, 2, 3))}}, {"add": {"x": scores((2, 2, 2))}})["ic"]
    assert (one.spearman, one.mean_difference, one.items) == (None, 1, 1)
    assert agreement(a, {}) == {}
