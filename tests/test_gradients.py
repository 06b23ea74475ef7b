"""The share of alignment in a step's gradient: measured without changing the update, and kept constant."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file

from rvedit.io.errors import UserError
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.gradients import SMOOTHING_STEPS, StepGradients, gradient_ratio
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.recipe_sections import AlignmentRecipe
from rvedit.training.run import train

ONE = Processes("ddp", "cpu")


def weights_of(runs, name):
    folder = runs / name / "model"
    parts = ("transformer/diffusion_pytorch_model", "connector/diffusion_pytorch_model", "mllm/model")
    return {f"{part}/{k}": v for part in parts for k, v in load_file(folder / f"{part}.safetensors").items()}


def autograd_ratio(recipe, step=0):
    """|grad L_align| / |grad L_fm| of a new run's step, both from the graph of one forward pass."""
    task = EditorTask(recipe, ONE)
    task.objective.train()
    trained = [p for p in task.objective.parameters() if p.requires_grad]
    size = recipe.batch_size
    batch = next(task.batches([list(range(step * size, (step + 1) * size))]))
    losses = task.objective(batch, step)
    fm, align = (
        torch.autograd.grad(losses[name], trained, retain_graph=True, allow_unused=True)
        for name in ("loss_fm", "loss_align")
    )
    pairs = [(f, a) for f, a in zip(fm, align, strict=True) if a is not None and a.any()]
    assert 0 < len(pairs) < len(trained), "alignment reaches some parameters, but not all"
    below, above = (
        math.sqrt(sum(float(g.square().sum()) for g in column)) for column in zip(*pairs, strict=True)
    )
    return above / below


@pytest.mark.parametrize("options", [(), ("accumulation=2", "model.gradient_checkpointing=true")])
def test_the_logged_ratio_is_that_of_one_graph(recipe_of, tmp_path, options):
    """With accumulation it is that of the whole batch, not a mean of the minibatches' ratios."""
    _, recipe = recipe_of(
        "logged", "alignment.log_ratio_every=1", "alignment.weight=0.2", "steps=1", *options
    )
    (step,) = train(recipe, tmp_path, "cpu")
    _, plain = recipe_of("plain", "alignment.weight=0.2")
    assert step["grad_ratio_align"] == pytest.approx(0.2 * autograd_ratio(plain), rel=1e-3)


def test_logging_the_ratio_changes_no_bit_of_the_updates(recipe_of, tmp_path):
    options = ("steps=4", "accumulation=2", "data.still_share=0.5", "ema_decay=0.9")
    logs = {}
    for name, every in (("plain", 0), ("logged", 2)):
        _, recipe = recipe_of(name, *options, f"alignment.log_ratio_every={every}")
        logs[name] = list(train(recipe, tmp_path, "cpu"))
    assert ["grad_ratio_align" in step for step in logs["logged"]] == [True, False, True, False]
    assert all("grad_ratio_align" not in step for step in logs["plain"])
    for key in ("loss", "loss_fm", "loss_align", "grad_norm"):
        assert [s[key] for s in logs["logged"]] == [s[key] for s in logs["plain"]], key
    plain, logged = (weights_of(tmp_path, name) for name in logs)
    assert all(torch.equal(logged[key], value) for key, value in plain.items())


def test_a_constant_ratio_sets_the_weight(recipe_of, tmp_path):
    """Step by step: the weight is the ratio over the running mean, and the update is Eq. 6 with it."""
    _, recipe = recipe_of("kept", "alignment.ratio=0.1", "steps=5")
    steps = list(train(recipe, tmp_path, "cpu"))
    assert steps[0]["grad_ratio_align"] == pytest.approx(0.1, rel=1e-5), "the first step has no past"
    logs = np.log([step["grad_ratio_align"] / step["align_weight"] for step in steps])
    for number, step in enumerate(steps, start=1):
        assert step["align_weight"] == pytest.approx(0.1 / np.exp(logs[:number].mean()), rel=1e-5)
        assert step["loss"] == pytest.approx(step["loss_fm"] + step["align_weight"] * step["loss_align"])
    assert np.ptp(logs) > 0.1, "otherwise there is nothing to smooth"
    state = json.loads((tmp_path / "kept/checkpoints/step_00000005/state.json").read_text())
    assert state["log_ratio"] == pytest.approx(logs.mean(), rel=1e-5)

    weight = steps[0]["align_weight"]
    for name, option in (("first", "alignment.ratio=0.1"), ("fixed", f"alignment.weight={weight}")):
        _, one = recipe_of(name, "steps=1", option)
        (step,) = train(one, tmp_path, "cpu")
        assert step["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-4), name


def test_the_ratio_rises_over_its_warm_up(recipe_of, tmp_path):
    _, recipe = recipe_of("warm", "alignment.ratio=0.1", "alignment.warmup_steps=4", "steps=1")
    (step,) = train(recipe, tmp_path, "cpu")
    assert step["grad_ratio_align"] == pytest.approx(0.025, rel=1e-5)


@pytest.mark.parametrize("option", ["alignment.ratio=0.1", "alignment.log_ratio_every=2"])
def test_a_stopped_run_goes_on_with_the_same_weights(recipe_of, tmp_path, option):
    _, recipe = recipe_of("whole", option)
    whole = list(train(recipe, tmp_path, "cpu"))
    _, recipe = recipe_of("stopped", option)
    run = train(recipe, tmp_path, "cpu")
    for _ in range(5):  # checkpoint_every is 2: the fifth step is computed again
        next(run)
    run.close()
    again = list(train(recipe, tmp_path, "cpu"))
    assert [step["step"] for step in again] == [4, 5]
    for key in {"loss", "grad_norm", "align_weight", "grad_ratio_align"} & whole[4].keys():
        assert [s.get(key) for s in again] == [s.get(key) for s in whole[4:]], key


def test_the_running_mean_forgets_and_ignores_what_has_no_logarithm():
    recipe = Recipe(alignment=AlignmentRecipe(ratio=0.1))
    gradients = StepGradients(Objective(), Objective(), {}, ONE, recipe)
    for updates in range(1000):
        gradients._smooth(math.e if updates < 500 else math.e**3, updates)
        if updates in (499, 500 + SMOOTHING_STEPS):
            expected = 1 if updates == 499 else 3 - 2 * (1 - 1 / SMOOTHING_STEPS) ** (SMOOTHING_STEPS + 1)
            assert gradients.log_ratio == pytest.approx(expected)
    before = gradients.log_ratio
    for ratio in (0.0, math.inf, math.nan):
        gradients._smooth(ratio, 3)
    assert gradients.log_ratio == before


class Objective(torch.nn.Module):
    def with_latents(self, batch):
        return batch


def test_only_parameters_that_both_losses_reach_count():
    fm = {"both": torch.tensor([3.0, 4.0]), "fm": torch.tensor([100.0]), "zero": torch.tensor([7.0])}
    align = {"both": torch.tensor([0.0, 10.0]), "align": torch.tensor([100.0]), "zero": torch.zeros(1)}
    assert gradient_ratio(fm, align, ONE) == pytest.approx(2.0)
    assert math.isnan(gradient_ratio(fm, {**align, "both": torch.tensor([math.nan, 1.0])}, ONE))


def test_losses_alone_are_those_of_the_whole_step(recipe_of):
    _, recipe = recipe_of("alone", "data.still_share=0.0")
    task = EditorTask(recipe, ONE)
    batch = next(task.batches([[0, 1]]))
    both = task.objective(batch, 3)
    for loss in ("loss_fm", "loss_align"):
        alone = task.objective(task.objective.with_latents(batch), 3, loss)
        assert alone.keys() == {"loss", loss}
        torch.testing.assert_close(alone[loss], both[loss], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alignment: {weight: 0.1, ratio: 0.1}", "exclude each other: set weight or ratio to null"),
        ("alignment: {weight: null}", "neither a weight nor a ratio: set weight: 0"),
        ("alignment: {ratio: 0}", "alignment.ratio is 0: input should be greater than 0"),
    ],
)
def test_a_weight_and_a_ratio_exclude_each_other(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_recipe(tmp_path / "a.yaml")


def test_a_ratio_takes_the_place_of_the_weight():
    alignment = AlignmentRecipe(ratio=0.1, warmup_steps=2)
    assert alignment.weight is None
    assert alignment.enabled
    assert [alignment.ratio_at(step) for step in range(3)] == [0.05, 0.1, 0.1]
    assert AlignmentRecipe.model_validate(alignment.model_dump()) == alignment
    assert not AlignmentRecipe(weight=0, log_ratio_every=1).logs_ratio_at(0)


def test_how_often_the_ratio_is_logged_may_change_on_resume(recipe_of, tmp_path):
    _, recipe = recipe_of("mine", "steps=1")
    list(train(recipe, tmp_path, "cpu"))
    _, longer = recipe_of("mine", "steps=2", "alignment.log_ratio_every=1")
    assert ["grad_ratio_align" in step for step in train(longer, tmp_path, "cpu")] == [True]


def test_a_task_with_one_loss_has_no_ratio(tmp_path):
    (tmp_path / "vae.yaml").write_text(
        "task: vae\nmodel: {preset: nano}\nalignment: {ratio: 0.1}\nsteps: 1\n"
    )
    with pytest.raises(UserError, match="are for task: editor, not vae: remove them"):
        list(train(load_recipe(tmp_path / "vae.yaml", assignments=SMALL), tmp_path, "cpu"))
