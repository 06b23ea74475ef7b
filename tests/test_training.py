"""Algorithm 1 end to end: golden losses, exact resume after a kill, and what a checkpoint holds.

`RVEDIT_WRITE_GOLDEN=1 pytest tests/test_training.py` stores the golden losses anew.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rvedit.errors import UserError
from rvedit.recipes import OptimizerRecipe, load_recipe
from rvedit.training.loop import rate_fraction
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.step import sample_depth
from rvedit.workflows.train import train

GOLDEN = Path(__file__).parent / "assets" / "golden_losses.json"
SMALL = [
    "data.height=32",
    "data.width=32",
    "data.num_frames=5",
    "data.workers=0",
    "batch_size=2",
    "precision=fp32",
]


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    recipe = runs / "tiny_vae.yaml"
    recipe.write_text("task: vae\nmodel: {preset: nano}\nsteps: 2\n")
    list(train(load_recipe(recipe, assignments=SMALL), runs, "cpu"))
    return runs / "tiny_vae"


@pytest.fixture
def recipe_of(tmp_path, vae_run):
    def build(name, *assignments):
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"model: {{preset: nano, routing_depth: 4, vae_from: {vae_run}}}\n"
            "optimizer: {name: adamw, learning_rate: 1.0e-3}\nsteps: 6\ncheckpoint_every: 2\n"
        )
        return path, load_recipe(path, assignments=[*SMALL, *assignments])

    return build


def losses_of(runs, name):
    lines = (runs / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_golden_run(recipe_of, tmp_path):
    _, recipe = recipe_of("golden", "steps=20", "checkpoint_every=20", "data.still_share=0.5")
    steps = [{k: s[k] for k in ("loss_fm", "loss_align")} for s in train(recipe, tmp_path, "cpu")]
    if os.environ.get("RVEDIT_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(steps, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for key in ("loss_fm", "loss_align"):
        got, stored = ([step[key] for step in run] for run in (steps, golden))
        np.testing.assert_allclose(got, stored, rtol=2e-3)
    assert np.mean([s["loss_fm"] for s in steps[-5:]]) < np.mean([s["loss_fm"] for s in steps[:5]])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_exactly(recipe_of, tmp_path, optimizer):
    options = (f"optimizer.name={optimizer}", "ema_decay=0.9")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))

    killed = [*options, "name=killed"]
    command = [sys.executable, "-c", "from rvedit_cli.main import main; main()", "train", str(path)]
    command += ["--runs", str(tmp_path), "--device", "cpu"]
    command += [part for value in [*SMALL, *killed] for part in ("--set", value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 4:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses_of(tmp_path, "killed")) >= 4
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    assert losses_of(tmp_path, "killed") == losses_of(tmp_path, "whole")
    for file in (
        "transformer/diffusion_pytorch_model.safetensors",
        "connector/diffusion_pytorch_model.safetensors",
    ):
        a, b = (safe_open(tmp_path / run / file, "pt") for run in ("killed", "whole"))
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118


def test_alignment_leaves_no_trace_in_the_checkpoint(recipe_of, tmp_path):
    keys = {}
    for weight in (0.0, 0.75):
        _, recipe = recipe_of(f"weight{weight}", f"alignment.weight={weight}", "steps=1")
        list(train(recipe, tmp_path, "cpu"))
        folder = tmp_path / recipe.name
        files = sorted(
            p.relative_to(folder) for p in folder.rglob("*.safetensors") if "checkpoints" not in p.parts
        )
        keys[weight] = {str(f): sorted(safe_open(folder / f, "pt").keys()) for f in files}
    assert len(keys[0.75]) == 5
    assert keys[0.0] == keys[0.75]


def test_an_edited_recipe_is_not_mixed_into_a_run(recipe_of, tmp_path):
    _, recipe = recipe_of("mine", "steps=2")
    list(train(recipe, tmp_path, "cpu"))
    _, other = recipe_of("mine", "steps=2", "alignment.weight=0.1")
    with pytest.raises(UserError, match=r"another alignment.*--fresh"):
        list(train(other, tmp_path, "cpu"))
    assert list(train(other, tmp_path, "cpu", fresh=True))


def test_the_resolved_recipe_and_versions_are_kept(recipe_of, tmp_path):
    _, recipe = recipe_of("kept", "steps=1")
    list(train(recipe, tmp_path, "cpu"))
    assert load_recipe(tmp_path / "kept" / "recipe.yaml") == recipe
    assert "torch:" in (tmp_path / "kept" / "versions.yaml").read_text()


def test_weights_of_the_5b_are_asked_for_before_anything_is_built(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("model: {preset: wan2.2-5b}\n")
    with pytest.raises(UserError, match=r"weights are not here.*nano"):
        list(train(load_recipe(path), tmp_path, "cpu"))


def test_depths_are_uniform_and_known_before_the_forward_pass():
    depths = [sample_depth(seed=0, step=step, num_layers=4) for step in range(2000)]
    assert depths == [sample_depth(0, step, 4) for step in range(2000)]
    counts = np.bincount(depths, minlength=5)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 500) < 100).all()


def test_rate_rises_and_falls_linearly():
    recipe = OptimizerRecipe(warmup_steps=3, decay_steps=4)
    fractions = [rate_fraction(recipe, step, 12) for step in range(12)]
    assert fractions[:4] == [0.25, 0.5, 0.75, 1.0]
    assert fractions[4:8] == [1.0] * 4
    assert fractions[8:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_muon_takes_matrices_and_adamw_the_rest():
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(3, 4), "b": torch.nn.Conv3d(2, 4, 2), "c": torch.nn.Embedding(5, 3)}
    )
    optimizer = NamedOptimizer(model, OptimizerRecipe(name="muon", learning_rate=1e-2))
    assert set(optimizer.matrices) == {"a.weight", "b.weight"}
    before = {n: p.clone() for n, p in model.named_parameters()}
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step(1.0)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    kernel = model["b"].weight - before["b.weight"]
    singular = torch.linalg.svdvals(kernel.reshape(4, -1))
    assert singular.max() / singular.min() < 3  # an orthogonalised step: all directions alike
