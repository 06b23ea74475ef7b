"""Recipes: precedence, and errors that name file, key and remedy."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from rvedit.io.errors import UserError
from rvedit.models.model_spec import PRESETS, model_spec
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.tasks import TASKS, task_class

FOLDER = Path(__file__).parent.parent / "recipes"
OVERLAY = FOLDER / "nano_scale.yaml"
# data.yaml is a mix of data sets, for `rvedit prepare mix`; table1.yaml lists editors.
NO_TRAINING = (
    OVERLAY,
    FOLDER / "nano_arms.yaml",
    FOLDER / "nano_pairs.yaml",
    FOLDER / "data.yaml",
    FOLDER / "table1.yaml",
)
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path not in NO_TRAINING)
PAPER = [path for path in RECIPES if load_recipe(path).paper]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid(path):
    assert load_recipe(path).name == path.stem


def test_every_field_says_what_it_is():
    def sections(model):
        yield model
        for field in model.model_fields.values():
            for annotation in (field.annotation, *get_args(field.annotation)):
                if hasattr(annotation, "model_fields"):
                    yield from sections(annotation)

    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert field.description or hasattr(field.annotation, "model_fields"), (section, name)


def test_a_size_beside_buckets_is_named():
    with pytest.warns(UserWarning, match=r"data\.num_frames is not used, as data\.buckets has the shapes"):
        load_recipe(FOLDER / "base.yaml", assignments=["data.num_frames=41"])


def test_presets_and_tasks_are_registered(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("model: {preset: half, routing_depth: 4}\n")
    with pytest.raises(UserError, match=r"model\.preset is 'half': .*choose one of nano, wan2\.2-5b"):
        load_recipe(tmp_path / "a.yaml")
    nano = model_spec("nano")
    monkeypatch.setitem(
        PRESETS, "half", replace(nano, name="half", transformer={**nano.transformer, "num_layers": 4})
    )
    (tmp_path / "a.yaml").write_text("model: {preset: half, routing_depth: 4}\ntask: nothing\n")
    with pytest.raises(UserError, match=r"task is 'nothing': .*choose one of editor, distill, vae"):
        load_recipe(tmp_path / "a.yaml")
    monkeypatch.setitem(TASKS, "nothing", "collections:Counter")
    assert load_recipe(tmp_path / "a.yaml").model.preset == "half"
    assert task_class("nothing").__name__ == "Counter"
    with pytest.raises(UserError, match="half has 4 blocks"):
        load_recipe(tmp_path / "a.yaml", assignments=["model.routing_depth=5"])


def test_recipes_of_version_0_1_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("task: vae\nkl_weight: 0.5\nflow: {noise_share: 0.25}\n")
    recipe = load_recipe(tmp_path / "a.yaml", assignments=["vae_loss.latent_noise=0.1"])
    assert (recipe.vae_loss.kl_weight, recipe.vae_loss.latent_noise) == (0.5, 0.1)
    assert recipe.flow.shared_noise_ratio == 0.25
    written = recipe.model_dump(mode="json")
    assert Recipe.model_validate(written) == recipe
    assert "kl_weight" not in written


def test_the_letter_of_appendix_d1():
    recipe, base = (load_recipe(FOLDER / f"{name}.yaml") for name in ("paper_letter_d1", "base"))
    assert recipe.alignment == base.alignment.model_copy(update={"weight": 0.1})
    assert (recipe.model.routing_depth, recipe.flow.shift) == (17, 1.0)
    assert (recipe.data, recipe.optimizer, recipe.steps) == (base.data, base.optimizer, base.steps)
    assert recipe.paper is None, "the paper's tables have no such row"


def test_the_arms_train_slowly_and_long(tmp_path):
    warnings.simplefilter("ignore", UserWarning)
    ratio = ("alignment.weight=null", "alignment.ratio=0.1")
    for settings in ((), ratio):
        arm = load_recipe(FOLDER / "rvedit.yaml", [FOLDER / "nano_arms.yaml"], settings)
        assert (arm.model.preset, arm.model.routing_depth, arm.steps) == ("nano", 4, 1500)
        assert (arm.optimizer.name, arm.optimizer.learning_rate) == ("adamw", 1e-4)
        assert arm.alignment.ratio == (0.1 if settings else None)


def test_every_row_of_the_papers_tables_has_a_recipe():
    rows = {table: set() for table in ("2a", "2b", "2c", "3")}
    for path in PAPER:
        recipe = load_recipe(path)
        for table in set(recipe.paper.tables) & rows.keys():
            rows[table].add((recipe.model.routing_depth, recipe.alignment.weight))
    assert rows["2a"] == {(30, 0.75), (15, 0.0), (0, 0.0)}
    assert rows["2b"] == {(8, 0.75), (15, 0.75), (17, 0.75), (25, 0.75), (30, 0.75)}
    assert rows["2c"] == {(15, weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert {(8, 0.75), (22, 0.75), (30, 0.75), (0, 0.0)} < rows["3"]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_figures_are_consistent_in_themselves(path):
    """Overall is the mean over categories and a category that over axes, as far as the paper keeps to it."""
    paper = load_recipe(path).paper
    if paper.table2:
        categories = {k: v for k, v in paper.table2.items() if k != "overall"}
        assert len(categories) == 4
        assert abs(sum(categories.values()) / 4 - paper.table2["overall"]) < 0.07
    if paper.table2 and paper.table3:
        for name, axes in paper.table3.items():
            assert abs((axes.ic + axes.cf + axes.vq) / 3 - paper.table2[name]) < 0.04, name


@pytest.mark.parametrize(("depth", "scaled"), [(0, 0), (8, 2), (15, 4), (22, 6), (25, 7), (30, 8)])
def test_the_nano_overlay_scales_the_routing_depth_and_says_so(tmp_path, depth, scaled):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {{preset: wan2.2-5b, routing_depth: {depth}}}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = load_recipe(path, [OVERLAY])
    assert (recipe.model.preset, recipe.model.routing_depth) == ("nano", scaled)
    said = [str(w.message) for w in caught if "routing_depth" in str(w.message)]
    assert bool(said) == (depth != scaled)
    assert all(f"{depth} of 30 blocks becomes {scaled} of 8" in line for line in said)


def test_more_blocks_than_there_are(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("model: {preset: nano, routing_depth: 9}\n")
    with pytest.raises(UserError, match=r"deep.yaml: model.routing_depth is 9: nano has 8 blocks"):
        load_recipe(path)


def test_later_layers_win(tmp_path):
    (tmp_path / "parent.yaml").write_text(
        "steps: 10\nbatch_size: 3\noptimizer: {learning_rate: 0.1, weight_decay: 0.5}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nsteps: 20\noptimizer: {learning_rate: 0.2}\n")
    (tmp_path / "over.yaml").write_text("steps: 30\n")
    child = load_recipe(tmp_path / "child.yaml")
    assert (child.name, child.steps, child.batch_size) == ("child", 20, 3)
    assert (child.optimizer.learning_rate, child.optimizer.weight_decay) == (0.2, 0.5)
    over = load_recipe(tmp_path / "child.yaml", [tmp_path / "over.yaml"], ["optimizer.weight_decay=0.25"])
    assert (over.steps, over.optimizer.weight_decay, over.optimizer.learning_rate) == (30, 0.25, 0.2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {buckets: [{num_frames: 5, height: 32, width: 32, shares: 2}]}", r"unknown key .*shares"),
        ("stepz: 3", r"unknown key stepz: choose one of .*steps"),
        ("optimizer: {lr: 3}", r"unknown key optimizer.lr: choose one of .*learning_rate"),
        ("steps: many", r"steps is 'many': input should be a valid integer"),
        ("steps: 0", r"steps is 0: input should be greater than 0"),
        ("model: {preset: tiny}", r"model.preset is 'tiny': choose one of nano, wan2.2-5b"),
        ("data: {operations: {swop: 1}}", r"data.operations.swop is 'swop': input should be 'swap'"),
        (
            "data: {new_things: {corgy: 8}}",
            r"data.new_things.corgy is 'corgy': input should be 'dog', 'corgi'",
        ),
        ("data: {operations: {swap: 0}}", r"data.operations.swap is 0: input should be greater than 0"),
        ("optimizer: 3", r"optimizer is 3"),
        ("- a\n- b", r"a recipe is a mapping of keys to values, not a list"),
        ("a: [1", r"not a YAML file"),
    ],
)
def test_mistakes_are_one_line_with_file_key_and_remedy(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_and_circle(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(UserError, match="circular"):
        load_recipe(tmp_path / "a.yaml")


def test_bad_assignment(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 1")
    for assignment, said in (
        ("steps", "key=value"),
        ("data.operations={swap: 3", "the value is not YAML"),
        ("data.manifest=rows.parquet", r"set data\.source: manifest"),
    ):
        with pytest.raises(UserError, match=said):
            load_recipe(tmp_path / "a.yaml", assignments=[assignment])
