"""Recipes: precedence, and errors that name file, key and remedy."""

from pathlib import Path

import pytest

from rvedit.errors import UserError
from rvedit.recipes import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid(path):
    assert load_recipe(path).name == path.stem


def test_every_field_says_what_it_is():
    def sections(model):
        yield model
        for field in model.model_fields.values():
            if hasattr(field.annotation, "model_fields"):
                yield from sections(field.annotation)

    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert field.description or hasattr(field.annotation, "model_fields"), (section, name)


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
        ("stepz: 3", r"unknown key stepz: choose one of .*steps"),
        ("optimizer: {lr: 3}", r"unknown key optimizer.lr: choose one of .*learning_rate"),
        ("steps: many", r"steps is 'many': input should be a valid integer"),
        ("steps: 0", r"steps is 0: input should be greater than 0"),
        ("model: {preset: tiny}", r"model.preset is 'tiny': input should be 'nano' or 'wan2.2-5b'"),
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
    with pytest.raises(UserError, match="circle"):
        load_recipe(tmp_path / "a.yaml")


def test_bad_assignment(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 1")
    with pytest.raises(UserError, match="key=value"):
        load_recipe(tmp_path / "a.yaml", assignments=["steps"])
