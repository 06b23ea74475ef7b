"""The draw is a pure function of the seed and the rows' keys."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvedit.datasets.mix import MixRecipe, draw_mix, load_mix, sample_mix, stratum_of, write_mix
from rvedit.io.errors import UserError
from rvedit.io.manifest import rank, read_manifest, write_manifest
from rvedit.io.records import Category, Triplet

CATEGORIES = list(Category)
RECIPE = MixRecipe(sources=("a",), per_category=5)


def triplet(dataset, index, **changes):
    category = CATEGORIES[index % 4]
    row = Triplet(
        id=f"{index:04d}",
        dataset=dataset,
        root=f"../{dataset}",
        source=f"s{index}.mp4",
        target=f"t{index}.mp4",
        instruction=f"edit {index}",
        category=category,
        dataset_category=f"local_{category.value}",
        num_frames=81,
        fps=16.0,
        width=64,
        height=48,
        licence="",
    )
    return replace(row, **changes)


def dataset(name, count=60):
    return [triplet(name, index) for index in range(count)]


def keys(rows):
    return [row.key for row in rows]


@given(st.permutations(range(40)), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(order, seed):
    recipe = RECIPE.model_copy(update={"seed": seed})
    # Some rows share a target, and some a source and an instruction.
    rows = [
        triplet("x", i, target=f"t{i % 30}.mp4", source=f"s{i % 7}.mp4", instruction=f"e {i % 5}")
        for i in range(40)
    ]
    assert sample_mix([[rows[i] for i in order]], recipe) == sample_mix([rows], recipe)


def test_another_data_set_changes_nothing():
    alone, _ = sample_mix([dataset("x")], RECIPE)
    for sources in ([dataset("x"), dataset("y")], [dataset("y"), dataset("x")]):
        both, _ = sample_mix(sources, RECIPE)
        assert [key for key in keys(both) if key.startswith("x/")] == keys(alone)
    split, _ = sample_mix([dataset("x")[:30], dataset("x")[30:]], RECIPE)  # in two manifests
    assert keys(split) == keys(alone)


def test_counts_seeds_and_what_fell_short():
    rows = [row for row in dataset("x") if row.category != Category.STYLE][:20]
    drawn, strata = sample_mix([rows], RECIPE)
    assert {s.category: (s.available, s.taken, s.short) for s in strata} == {
        "change": (7, 5, 0),
        "remove": (7, 5, 0),
        "add": (6, 5, 0),
        "style": (0, 0, 5),
    }
    assert len(drawn) == 15
    assert drawn != sample_mix([rows], RECIPE.model_copy(update={"seed": 1}))[0]


def test_a_larger_draw_holds_the_smaller_one():
    small, large = (
        set(keys(sample_mix([dataset("x", 400)], RECIPE.model_copy(update={"per_category": n}))[0]))
        for n in (5, 20)
    )
    assert small < large


def test_the_draw_is_spread_over_the_data_set():
    drawn, _ = sample_mix([dataset("x", 4000)], RECIPE.model_copy(update={"per_category": 200}))
    indices = [int(row.id) for row in drawn]
    assert 1850 < sum(indices) / len(indices) < 2150  # four standard errors of 38 around 2,000


@pytest.mark.parametrize(
    ("changes", "is_duplicate"),
    [
        ({"target": "./t0.mp4"}, True),  # the same target file
        ({"source": "s0.mp4", "instruction": " Edit  0"}, True),  # the same question, answered again
        ({"id": "0000"}, True),
        ({"source": "s0.mp4"}, False),
        ({"instruction": "edit 0"}, False),
    ],
)
def test_duplicates_are_left_out_and_counted(changes, is_duplicate):
    rows = [triplet("x", 0), triplet("x", 4, **changes)]
    for given_rows in (rows, rows[::-1]):
        drawn, strata = sample_mix([given_rows], RECIPE)
        assert (strata[0].available, strata[0].duplicates) == (2, int(is_duplicate))
        if is_duplicate:
            assert keys(drawn) == [min(rows, key=lambda row: rank(0, row.key)).key]


def test_the_first_data_set_keeps_a_clip_that_two_have():
    shared = {"root": "../pool", "target": "t0.mp4", "source": "s0.mp4"}
    x, y = triplet("x", 0, **shared), triplet("y", 0, **shared)
    assert keys(sample_mix([[x], [y]], RECIPE)[0]) == ["x/0000"]
    assert keys(sample_mix([[y], [x]], RECIPE)[0]) == ["y/0000"]


def test_a_data_sets_own_words():
    rows = [*dataset("x", 8), *(triplet("x", i, category=None, dataset_category="camera") for i in (90, 91))]
    recipe = RECIPE.model_copy(update={"categories": ("camera", "add")})
    drawn, strata = sample_mix([rows, dataset("y", 8)], recipe)
    assert {(s.dataset, s.category): s.taken for s in strata} == {
        ("x", "camera"): 2,
        ("x", "add"): 2,
        ("y", "add"): 2,
    }
    assert {stratum_of(row) for row in drawn} == {"camera", "add"}
    with pytest.raises(UserError, match="no manifest has 'cameras': choose from add, camera, change"):
        sample_mix([rows], RECIPE.model_copy(update={"categories": ("cameras",)}))


def test_the_projects_recipe_is_the_papers():
    recipe = load_mix(Path(__file__).parent.parent / "recipes" / "data.yaml")
    assert recipe.per_category * len(recipe.categories) * len(recipe.sources) == 120_000
    assert set(recipe.categories) == {category.value for category in Category}
    for name, field in MixRecipe.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sources: [a]\nper_categry: 3", "unknown key per_categry: choose one of sources, per_category"),
        ("seed: 3", "sources is missing"),
        ("sources: []", "sources is"),
        ("sources: [a]\nper_category: 0", "per_category is 0: input should be greater than 0"),
        ("sources: [a]\nseed: x", "seed is 'x'"),
        ("- a", "a recipe is a mapping"),
        ("a: [", "not a YAML file"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_mix(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such recipe"):
        load_mix(tmp_path / "none.yaml")


def test_a_mix_keeps_the_way_to_its_clips(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_manifest(
            tmp_path / "prepared" / name / "manifest.parquet", [triplet(name, 0, root=f"../../{name}")]
        )
        (tmp_path / name / "s0.mp4").touch()
    recipe = MixRecipe(sources=(str(tmp_path / "prepared" / "x"), str(tmp_path / "prepared" / "y")))
    out = tmp_path / "deep" / "down" / "mix"
    write_mix(draw_mix(recipe, out))
    rows = read_manifest(out)
    assert [row.root for row in rows] == ["../../../x", "../../../y"]
    assert all((out / row.root / row.source).is_file() for row in rows)
    with pytest.raises(UserError, match="choose another `out`"):
        draw_mix(recipe, tmp_path / "prepared" / "x")
