"""benchmarks/alignment_arms.py and gradient_ratio.py: what is compared, and that finished runs are reused."""

import importlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rvedit.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("alignment_arms")


def test_arms_differ_by_alignment_shift_and_in_one_case_routing_alone(arms):
    warnings.simplefilter("ignore", UserWarning)
    recipes = {k: load_recipe(arms.RECIPES / "rvedit.yaml", [arms.OVERLAY], v) for k, v in arms.ARMS.items()}
    everywhere = recipes[arms.EVERYWHERE]
    assert everywhere.model.routing_depth == 0
    recipes[arms.EVERYWHERE] = everywhere.model_copy(update={"model": recipes[arms.NONE].model})
    for label, recipe in recipes.items():
        same = {"alignment", "flow"}
        assert recipe.model_dump(exclude=same) == recipes[arms.NONE].model_dump(exclude=same), label
        assert (recipe.flow.shift == 1) == ("shift 1" in label)
        text = "ratio" if recipe.alignment.ratio else "lambda"
        assert label.startswith(f"{text} = {recipe.alignment.ratio or recipe.alignment.weight:g}")
    assert recipes["ratio = 0.1"].steps >= 1500
    assert len({arms.arm_name(label, 1) for label in arms.ARMS}) == len(arms.ARMS)


def test_differences_are_paired_by_clip_and_seed(arms, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, (2, 40, 4))  # the variance of clips and seeds is no part of the difference
    row = arms.summarize("lambda = 0.1", base + np.arange(1, 5), base, ())
    for name, less in zip(arms.QUANTITIES, (1, 2, 3, 4), strict=True):
        assert row[f"{name}_less_none"] == pytest.approx([less] * 3)
        assert row[f"{name}_less_none_by_seed"] == pytest.approx([less] * 2)
        assert row[name][1] < row[name][0] < row[name][2]
    (tmp_path / "metrics.jsonl").write_text('{"grad_ratio_align": 1}\n{}\n{"grad_ratio_align": 5}\n')
    row = arms.summarize("lambda = 0.1", base, None, [tmp_path])
    assert row["grad_ratio_align"] == [3, 1, 5]
    assert row["align_weight"] is None
    assert "gain_less_none" not in row


def test_ratio_and_cosine_of_two_gradients(arms):
    pair_of = importlib.import_module("gradient_ratio").GradientPair
    fm = (torch.tensor([3.0, 4.0]), torch.tensor([9.0]), None)
    align = (torch.tensor([[0.0], [10.0]]).flatten(), None, torch.ones(1))
    pair = pair_of(["a.both", "a.fm", "b.align"], fm, align)
    assert (pair.ratio, pair.cosine) == pytest.approx((2, 0.8))
    assert pair.dot(1, 1, "b.") == 0


def test_the_stored_ratios_are_summaries_of_their_cells():
    stored = json.loads((ROOT / "benchmarks/results/gradient_ratio.json").read_text())
    for row in stored["by_time"].values():
        median, low, high = row["ratio"]
        blocks = np.array(row["ratio_by_block"])
        assert low == blocks[:, 1].min() <= median <= blocks[:, 2].max() == high
    assert sum(stored["share_of_alignments_squared_gradient"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_arms_are_trained_compared_and_not_trained_again(arms, tmp_path, capfd):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model").symlink_to(ROOT / "rvedit" / "nano")
    words = [
        "--first-stage",
        tmp_path / "first",
        "--work",
        tmp_path / "work",
        "--out",
        tmp_path / "out/arms.json",
    ]
    words += ["--steps", 1, "--count", 2, "--seeds", 1, "--denoising-steps", 1, "--at-once", 1]
    words += ["--arms", "lambda = 0", "ratio = 0.1"]
    outputs = []
    for _ in range(2):
        arms.main([str(word) for word in words])
        outputs.append(capfd.readouterr().out)
    assert "1 steps done" in outputs[0]
    assert "1 steps done" not in outputs[1]
    found = json.loads((tmp_path / "out" / "arms.json").read_text())
    rows = {row["label"]: row for row in found["arms"]}
    assert list(rows) == ["the first stage itself", "lambda = 0", "ratio = 0.1"]
    assert rows["ratio = 0.1"]["grad_ratio_align"] == pytest.approx([0.1] * 3, rel=1e-4)
    assert rows["ratio = 0.1"]["loss_fm_less_none"][0] != 0
    assert rows["lambda = 0"]["grad_ratio_align"] is None
    assert (tmp_path / "out" / "arms.png").is_file()
