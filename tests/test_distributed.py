"""Several processes give what one gives: real processes (gloo), DDP, FSDP2, another number of them."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import SMALL, losses_of, make_connector, make_pipeline, make_transformer
from processes import on_two, run_two, start_two, train_words
from safetensors.torch import load_file
from test_training import wait_for_steps
from torch.distributed.tensor import DTensor

from rvedit.datasets.cache_job import CacheConfig, cache_manifest
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.training.distributed import Processes, full_tensor
from rvedit.training.gradients import StepGradients
from rvedit.training.loop import sample_numbers
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import OptimizerRecipe, Recipe, load_recipe
from rvedit.training.run import train

STEPS = 4


def torchrun(path, runs, *assignments):
    """Run `torchrun ... rvedit train PATH`, as users start it, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "rvedit_cli"]
    command += train_words(path, runs, *assignments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


ONE_COPY_EACH, ONE_COPY = ("parallel=hsdp", "shard_size=1"), ("parallel=hsdp", "shard_size=2")
ONE_CLIP = ("parallel=ddp", "context_parallel=2")
ONE_CLIP_SHARDED = ("parallel=fsdp2", "context_parallel=2", "model.gradient_checkpointing=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "strategy"),
    [
        (torchrun, ["parallel=ddp"]),
        (run_two, ["parallel=fsdp2"]),
        (run_two, ONE_COPY_EACH),
        (run_two, ONE_CLIP),
        (run_two, ONE_CLIP_SHARDED),
    ],
)
def test_two_processes_have_the_losses_of_one(recipe_of, tmp_path, launch, strategy):
    options = ("ema_decay=0.9", "batch_size=4", f"steps={STEPS}", "alignment.weight=0.75")
    path, recipe = recipe_of("one", *options)
    list(train(recipe, tmp_path, "cpu"))
    launch(path, tmp_path, *SMALL, *options, "name=two", *strategy)
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
@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        ("ddp", "alignment.log_ratio_every=1"),
        ("fsdp2", "alignment.ratio=0.1"),
        ("hsdp", "alignment.log_ratio_every=1"),
        ("ddp", "alignment.ratio=0.1"),
    ],
)
def test_two_processes_have_the_gradient_ratio_of_one(recipe_of, tmp_path, strategy, option):
    """Over the whole batch, which two processes compute in two minibatches each."""
    options = ("batch_size=4", "steps=2", option, "optimizer.learning_rate=1e-4")
    path, recipe = recipe_of("one", *options)
    one = list(train(recipe, tmp_path, "cpu"))
    run_two(
        path,
        tmp_path,
        *SMALL,
        *options,
        "name=two",
        f"parallel={strategy}",
        "accumulation=2",
        "shard_size=1",
    )
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
    run_two(path, tmp_path, *SMALL, *options, "name=two", "parallel=ddp")
    np.testing.assert_allclose(losses_of(tmp_path, "two"), losses_of(tmp_path, "one"), rtol=1e-4)


@pytest.mark.slow
def test_a_sharded_run_from_a_cache_validates(tmp_path):
    """Training needs no text encoder then, but edits do: also where it was loaded by another process."""
    size = {"num_frames": 5, "height": 32, "width": 32}
    list(prepare_playground(PlaygroundConfig(3, **size), tmp_path / "triplets", workers=1))
    manifest, cache = tmp_path / "triplets" / "manifest.parquet", tmp_path / "cache"
    list(cache_manifest(CacheConfig(manifest, cache, shapes=(ClipShape(**size),)), "cpu"))
    path = tmp_path / "one.yaml"
    path.write_text(
        "model: {preset: nano, init_from: nano, routing_depth: 4, frozen: [text_encoder]}\nsteps: 1\n"
        "validation: {every: 1, count: 1, num_inference_steps: 1, timesteps: [0.5], held_out: 1}\n"
        f"data: {{source: manifest, manifest: {manifest}, cache: {cache}}}\n"
    )
    list(train(load_recipe(path, assignments=SMALL), tmp_path, "cpu"))
    run_two(path, tmp_path, *SMALL, "name=two", "parallel=fsdp2")
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "validation.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    losses = [[step["held_out_loss"] for step in run] for run in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [["parallel=fsdp2"], ONE_CLIP_SHARDED])
def test_a_run_goes_on_with_another_number_of_processes(recipe_of, tmp_path, strategy):
    options = ("ema_decay=0.9", "batch_size=4", f"steps={STEPS}")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))
    _, half = recipe_of("moved", *options, "name=moved")
    run = train(half, tmp_path, "cpu")
    for _ in range(STEPS // 2):
        next(run)
    run.close()
    run_two(path, tmp_path, *SMALL, *options, "name=moved", *strategy, "accumulation=2")
    assert len(losses_of(tmp_path, "moved")) == STEPS
    np.testing.assert_allclose(losses_of(tmp_path, "moved"), losses_of(tmp_path, "whole"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ONE_COPY, ONE_COPY_EACH])
def test_killed_processes_are_resumed_by_one(recipe_of, tmp_path, strategy):
    options = ("ema_decay=0.9", "batch_size=4", "steps=12", "checkpoint_every=3")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))
    processes = start_two(path, tmp_path, *SMALL, *options, "name=killed", *strategy)
    wait_for_steps(tmp_path / "killed" / "metrics.jsonl", 5, processes[0])
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.finish()
    done = len(losses_of(tmp_path, "killed"))
    assert 5 <= done < 12, "it was killed between two checkpoints, or after the end"
    _, alone = recipe_of("killed", *options)
    list(train(alone, tmp_path, "cpu"))
    np.testing.assert_allclose(losses_of(tmp_path, "killed"), losses_of(tmp_path, "whole"), rtol=1e-4)


@pytest.fixture
def process_group():
    """A group of one process, in which FSDP2 shards a model into one part."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Regression(torch.nn.Module):
    """An objective of two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))

    def forward(self, batch, step):
        return {"loss": self.layers(batch).square().mean()}


@pytest.mark.usefixtures("process_group")
def test_adamw_updates_shards_by_fused_kernels_as_it_updates_whole_tensors():
    recipe, batches = OptimizerRecipe(learning_rate=0.1, weight_decay=0.1), torch.randn(4, 8, 3)
    weights, states = [], []
    for strategy in ("ddp", "fsdp2"):
        objective = Regression()
        model = Processes(strategy, "cpu").wrap(objective)
        optimizer = NamedOptimizer(objective, recipe)
        for step, batch in enumerate(batches):
            if step == 2:  # as after a resumption
                state = {name: full_tensor(x).clone() for name, x in optimizer.named_state().items()}
                optimizer = NamedOptimizer(objective, recipe)
                optimizer.load_named_state(state)
            model(batch, step)["loss"].backward()
            optimizer.step(1.0)
        adamw = optimizer.optimizers[0]
        assert all(group["fused"] for group in adamw.param_groups)
        assert not any(isinstance(p, DTensor) for group in adamw.param_groups for p in group["params"])
        weights.append({n: full_tensor(p.detach()) for n, p in objective.named_parameters()})
        states.append({n: full_tensor(x) for n, x in optimizer.named_state().items()})
    for whole, sharded in (weights, states):
        assert whole.keys() == sharded.keys()
        assert all(torch.equal(sharded[name], value) for name, value in whole.items())


class Tied(Regression):
    """Layers of which two share a weight."""

    def __init__(self):
        super().__init__()
        self.again = torch.nn.Linear(3, 5, bias=False)
        self.again.weight = self.layers[0].weight
        self.register_buffer("offset", torch.ones(2))


def load_as_one_of_two(rank, store, strategy):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    processes, built = Processes(strategy, "cpu"), []

    def build():
        built.append(Tied().requires_grad_(False))
        built[0].again.weight.requires_grad_(True)
        return built[0], "the rest"

    def fail():
        raise OSError("no such model")

    objective, rest = processes.from_main(build)
    assert rest == "the rest"
    assert bool(built) == (rank == 0), "one process loads"
    assert all(p.is_meta == (rank == 1) for p in objective.parameters())
    assert objective.again.weight is objective.layers[0].weight
    processes.wrap(objective)
    expected = dict(Tied().named_parameters())
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(full_tensor(parameter.detach()), expected[name].detach())
        assert parameter.requires_grad == (name == "layers.0.weight")
    assert torch.equal(objective.offset, torch.ones(2))
    with pytest.raises(UserError if rank else OSError, match="no such model"):
        processes.from_main(fail)
    frozen = processes.from_main(Tied)
    processes.receive(frozen)
    assert torch.equal(frozen.again.weight, expected["layers.0.weight"])
    assert frozen.again.weight is frozen.layers[0].weight
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp"])
def test_one_process_loads_a_model_that_is_sharded(tmp_path, strategy):
    on_two(load_as_one_of_two, tmp_path / "store", strategy)


@pytest.mark.usefixtures("process_group")
def test_copies_of_hsdp_must_have_equal_shares():
    with pytest.raises(UserError, match="shard_size is 2: it must divide the number of processes, 1"):
        Processes("hsdp", "cpu", shard_size=2).wrap(Regression())


@pytest.mark.usefixtures("process_group")
def test_fsdp2_shards_the_gradients_of_every_minibatch():
    """Otherwise each process keeps the whole model's gradients while they are accumulated."""
    processes, objective = Processes("fsdp2", "cpu"), Regression()
    model = processes.wrap(objective)
    trained = dict(objective.named_parameters())
    batches = torch.randn(3, 8, 3)

    def minibatches():
        yield batches[0]
        for batch in batches[1:]:
            assert all(isinstance(p.grad, DTensor) for p in trained.values())
            yield batch

    recipe = Recipe(accumulation=3, precision="fp32")
    StepGradients(objective, model, trained, processes, recipe).accumulate(minibatches(), 0)
    whole = Regression()
    whole(batches.flatten(0, 1), 0)["loss"].backward()
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(trained[name].grad.full_tensor(), parameter.grad)


class Denoiser(torch.nn.Module):
    """A transformer's output as a loss; `parts` are what its hooks saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer = make_transformer()
        self.seen = {}
        embedder, block = self.transformer.condition_embedder, self.transformer.blocks[0]
        embedder.time_embedder.register_forward_hook(lambda _, args, out: self.seen.update(time=out))
        embedder.time_proj.register_forward_hook(lambda _, args, out: self.seen.update(projected=out))
        block.attn1.to_q.register_forward_hook(lambda m, args, out: self.seen.update(query=m.weight.dtype))

    def forward(self, noisy, timestep, edit_tokens):
        groups = self.transformer.embed_tokens(edit_tokens)
        return self.transformer(noisy, timestep, groups).sample.float().square().mean()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_time_embedding_is_fp32_under_bf16(monkeypatch, strategy):
    """501.3 would be 502 in bf16. Other layers are gathered in bf16."""
    monkeypatch.setattr("rvedit.training.distributed.computes_bf16", lambda device: True)
    torch.manual_seed(1)
    inputs = torch.randn(1, 8, 2, 4, 4), torch.tensor([501.3]), torch.randn(1, 6, 64)
    exact = Denoiser()
    exact(*inputs)
    objective = Denoiser()
    processes = Processes(strategy, "cpu", "bf16")
    model = processes.wrap(objective)
    with processes.autocast():
        model(*inputs).backward()
    assert torch.equal(objective.seen["time"], exact.seen["time"])
    assert torch.equal(objective.seen["projected"], exact.seen["projected"])
    assert objective.seen["query"] == (torch.bfloat16 if strategy == "fsdp2" else torch.float32)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in objective.parameters())


@pytest.mark.usefixtures("process_group")
def test_ddp_and_fsdp2_agree_in_bf16(recipe_of, tmp_path, monkeypatch):
    """To the precision of bf16, also when they validate."""
    monkeypatch.setattr("rvedit.training.distributed.computes_bf16", lambda device: True)
    options = ("precision=bf16", "steps=2", "validation.every=2", "validation.count=1")
    steps = {}
    for strategy in ("ddp", "fsdp2"):
        _, recipe = recipe_of(strategy, f"parallel={strategy}", *options, "validation.num_inference_steps=1")
        steps[strategy] = list(train(recipe, tmp_path, "cpu"))
    for key in ("loss_fm", "loss_align"):
        whole, sharded = ([step[key] for step in run] for run in steps.values())
        assert whole != sharded, "gathered in bf16"
        np.testing.assert_allclose(sharded, whole, rtol=2e-2)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(recipe_of, tmp_path):
    options = ("ema_decay=0.9", "batch_size=4")
    path, whole = recipe_of("whole", *options, f"steps={STEPS}")
    list(train(whole, tmp_path, "cpu"))
    run_two(path, tmp_path, *SMALL, *options, "steps=2", "name=moved", "parallel=fsdp2")
    files = list((tmp_path / "moved" / "checkpoints" / "step_00000002").glob("model-*"))
    assert {file.name.split("-")[1] for file in files} == {"00000", "00001"}, "each process writes its own"
    _, alone = recipe_of("moved", *options, f"steps={STEPS}")
    list(train(alone, tmp_path, "cpu"))
    np.testing.assert_allclose(losses_of(tmp_path, "moved"), losses_of(tmp_path, "whole"), rtol=1e-4)


class Share:
    """Process `rank` of `count`, each with minibatches of its own."""

    def __init__(self, rank, count):
        self.data_rank, self.data_count, self.count = rank, count, count


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
