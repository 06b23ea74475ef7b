"""Several processes give what one gives: real processes (gloo), DDP, FSDP2, another number of them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL, losses_of, make_connector, make_pipeline
from safetensors.torch import load_file

from rvedit.io.errors import UserError
from rvedit.training.loop import sample_numbers
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

STEPS = 4


def launch(path, runs, processes, *assignments):
    """`torchrun ... rvedit train PATH`, as users start it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "rvedit_cli"]
    command += ["train", str(path), "--runs", str(runs), "--device", "cpu"]
    command += [part for value in assignments for part in ("--set", value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one(recipe_of, tmp_path, strategy):
    options = ("ema_decay=0.9", "batch_size=4", f"steps={STEPS}", "alignment.weight=0.75")
    path, recipe = recipe_of("one", *options)
    list(train(recipe, tmp_path, "cpu"))
    two = (*SMALL, *options, "name=two", f"parallel={strategy}")
    done = launch(path, tmp_path, 2, *two)
    assert done.returncode == 0, done.stderr
    for key in ("loss_fm", "loss_align", "grad_norm"):
        one_process, two_processes = (
            [json.loads(line)[key] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
            for run in ("one", "two")
        )
        np.testing.assert_allclose(two_processes, one_process, rtol=1e-4, atol=1e-4)
    name = "model/transformer/diffusion_pytorch_model.safetensors"
    one_state, two_state = (load_file(tmp_path / run / name) for run in ("one", "two"))
    assert one_state.keys() == two_state.keys()
    for key, value in one_state.items():
        torch.testing.assert_close(two_state[key], value, rtol=0, atol=3e-3, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("option", ["alignment.log_ratio_every=1", "alignment.ratio=0.1"])
def test_two_processes_have_the_gradient_ratio_of_one(recipe_of, tmp_path, strategy, option):
    """Over the whole batch, which two processes compute in two minibatches each."""
    options = ("batch_size=4", "steps=2", option, "optimizer.learning_rate=1e-4")
    path, recipe = recipe_of("one", *options)
    one = list(train(recipe, tmp_path, "cpu"))
    done = launch(path, tmp_path, 2, *SMALL, *options, "name=two", f"parallel={strategy}", "accumulation=2")
    assert done.returncode == 0, done.stderr
    two = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    for key in {"loss", "grad_norm", "grad_ratio_align", "align_weight"} & one[0].keys():
        np.testing.assert_allclose([s[key] for s in two], [s[key] for s in one], rtol=1e-3, err_msg=key)
    assert {"grad_ratio_align"} <= one[0].keys()


@pytest.mark.slow
def test_stills_and_clips_with_queries_of_their_own(recipe_of, tiny_tokenizer, tmp_path):
    """A step reads the one or the other, as of Kiwi-Edit's connector: the rest must not be waited for."""
    start = make_pipeline(tiny_tokenizer)
    start.register_modules(connector=make_connector(num_image_queries=3))
    start.save_pretrained(tmp_path / "start")
    options = ("model.vae_from=null", f"model.init_from={tmp_path / 'start'}", "model.routing_depth=1")
    options += (f"steps={STEPS}", "data.still_share=0.5")
    path, recipe = recipe_of("one", *options)
    list(train(recipe, tmp_path, "cpu"))
    done = launch(path, tmp_path, 2, *SMALL, *options, "name=two", "parallel=ddp")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_of(tmp_path, "two"), losses_of(tmp_path, "one"), rtol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(recipe_of, tmp_path):
    options = ("ema_decay=0.9", "batch_size=4", f"steps={STEPS}")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))
    _, half = recipe_of("moved", *options, "name=moved")
    run = train(half, tmp_path, "cpu")
    for _ in range(STEPS // 2):
        next(run)
    run.close()
    done = launch(path, tmp_path, 2, *SMALL, *options, "name=moved", "parallel=fsdp2", "accumulation=2")
    assert done.returncode == 0, done.stderr
    assert len(losses_of(tmp_path, "moved")) == STEPS
    np.testing.assert_allclose(losses_of(tmp_path, "moved"), losses_of(tmp_path, "whole"), rtol=1e-4)


class Share:
    """Process `rank` of `count`."""

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@pytest.mark.parametrize(("count", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_samples_are_shared_out_without_gap_or_overlap(tmp_path, count, accumulation):
    path = tmp_path / "a.yaml"
    path.write_text(f"batch_size: 12\nsteps: 5\naccumulation: {accumulation}\n")
    recipe = load_recipe(path)
    seen = [list(sample_numbers(recipe, 2, Share(rank, count))) for rank in range(count)]
    per_step = [
        sorted(n for numbers in seen for part in numbers[i : i + accumulation] for n in part)
        for i in range(0, len(seen[0]), accumulation)
    ]
    assert per_step == [list(range(step * 12, (step + 1) * 12)) for step in (2, 3, 4)]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("batch_size: 8\n")
    with pytest.raises(UserError, match=r"batch_size is 8: .*3 x 1"):
        sample_numbers(load_recipe(path), 0, Share(0, 3))
