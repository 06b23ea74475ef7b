"""Checkpoints: parts of tensors, saves in the background, what is kept and exported."""

import json
import threading

import pytest
import torch
from conftest import losses_of
from processes import rvedit
from safetensors.torch import load_file, save_file

from rvedit.io.errors import UserError
from rvedit.pipelines.loading import load_pipeline
from rvedit.training import state as state_module
from rvedit.training.distributed import Processes
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import OptimizerRecipe
from rvedit.training.run import export_run, train
from rvedit.training.shard_files import Part, StoredTensors, write_parts
from rvedit.training.state import CheckpointWriter, RunState, latest_checkpoint, load_checkpoint


def test_tensors_of_several_processes_are_read_by_rows(tmp_path):
    whole, scalar = torch.randn(5, 3), torch.tensor(7.0)
    write_parts(tmp_path, "model", 0, {"a": Part(whole[:3], 0)})
    write_parts(tmp_path, "model", 1, {"a": Part(whole[3:].clone(), 3), "b": Part(scalar, 0)})
    stored = StoredTensors(tmp_path, "model")
    assert {name: stored.shape(name) for name in stored.parts} == {"a": (5, 3), "b": ()}
    assert torch.equal(stored.read("a", whole), whole)
    assert torch.equal(stored.read("b", whole), scalar)
    for first, end in ((0, 2), (2, 4), (3, 5), (5, 5)):
        assert torch.equal(stored._rows("a", first, end), whole[first:end])


def make_optimizer(seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    optimizer = NamedOptimizer(model, OptimizerRecipe())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step(1.0)
    return optimizer


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The checkpoint holds the weights of its step, and is complete only when all is written."""
    started, may_write = threading.Event(), threading.Event()

    def write_late(*args):
        started.set()
        assert may_write.wait(60)
        write_parts(*args)

    monkeypatch.setattr(state_module, "write_parts", write_late)
    optimizer = make_optimizer(0)
    before = {name: p.detach().clone() for name, p in optimizer.trained.items()}
    writer = CheckpointWriter(tmp_path, Processes("ddp", "cpu"), keep=2)
    writer.save(RunState(1), optimizer, None)
    assert started.wait(60)
    assert latest_checkpoint(tmp_path) is None
    writer.wait_for_copy()
    with torch.no_grad():
        for parameter in optimizer.trained.values():
            parameter.zero_()
    may_write.set()
    writer.save(RunState(2), optimizer, None)  # waits for the first
    assert latest_checkpoint(tmp_path).name == "step_00000001"
    writer.finish()
    assert latest_checkpoint(tmp_path).name == "step_00000002"
    writer.close()
    other = make_optimizer(1)
    assert load_checkpoint(tmp_path / "checkpoints/step_00000001", other, None).step == 1
    assert all(torch.equal(p, before[name]) for name, p in other.trained.items())
    state = optimizer.named_state()
    assert all(torch.equal(value, state[key]) for key, value in other.named_state().items())


def test_a_checkpoint_of_an_earlier_version_is_read(recipe_of, tmp_path):
    """It has whole tensors, without metadata."""
    _, recipe = recipe_of("whole", "ema_decay=0.9")
    list(train(recipe, tmp_path, "cpu"))
    _, half = recipe_of("old", "ema_decay=0.9", "steps=2")
    list(train(half, tmp_path, "cpu"))
    folder = latest_checkpoint(tmp_path / "old")
    sizes = {}
    for group in ("model", "optimizer", "average"):
        file = folder / f"{group}-00001.safetensors"
        (new,) = folder.glob(f"{group}-*.safetensors")
        tensors = load_file(new)
        new.unlink()
        save_file(tensors, file)
        sizes[file.name] = file.stat().st_size
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "files": sizes}))
    _, rest = recipe_of("old", "ema_decay=0.9")
    assert [step["step"] for step in train(rest, tmp_path, "cpu")] == [2, 3, 4, 5]
    assert losses_of(tmp_path, "old") == losses_of(tmp_path, "whole")


def test_a_model_is_exported_from_a_checkpoint_without_training(recipe_of, tmp_path):
    _, recipe = recipe_of("run", "ema_decay=0.5", "steps=2", "checkpoint_every=1")
    list(train(recipe, tmp_path, "cpu"))
    file = tmp_path / "run/model/transformer/diffusion_pytorch_model.safetensors"
    last = load_file(file)
    file.unlink()
    done = rvedit("train", "--export", tmp_path / "run", cwd=tmp_path, check=0)
    assert "--model" in done.stdout
    assert all(torch.equal(value, last[name]) for name, value in load_file(file).items())
    assert export_run(tmp_path / "run", 1)[1] == tmp_path / "run/model"
    averages = StoredTensors(tmp_path / "run/checkpoints/step_00000001", "average")
    for name, value in load_file(file).items():
        assert torch.equal(value, averages.read(f"transformer.{name}", value)), name
    with pytest.raises(UserError, match="no checkpoint of that step: those of steps 1, 2 are there"):
        export_run(tmp_path / "run", 7)
    with pytest.raises(UserError, match=r"recipe.yaml: not found: choose the folder of a run"):
        export_run(tmp_path)


def test_checkpoints_and_exports_are_as_many_as_asked_for(recipe_of, tmp_path):
    """An export has the moving average, and the run goes on as without it."""
    options = ("ema_decay=0.5", "steps=5", "checkpoint_every=1")
    _, recipe = recipe_of("plain", *options)
    list(train(recipe, tmp_path, "cpu"))
    _, recipe = recipe_of("exported", *options, "keep_checkpoints=4", "export_every=2")
    list(train(recipe, tmp_path, "cpu"))
    assert losses_of(tmp_path, "exported") == losses_of(tmp_path, "plain")
    names = [f"step_{step:08d}" for step in range(1, 6)]
    kept = {run: sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir())
            for run in ("plain", "exported")}  # fmt: skip
    assert kept == {"plain": names[3:], "exported": names[1:]}
    exports = tmp_path / "exported" / "exports"
    assert sorted(p.name for p in exports.iterdir()) == [names[1], names[3]]
    averages = StoredTensors(tmp_path / "exported" / "checkpoints" / names[3], "average")
    weights = load_pipeline(str(exports / names[3]), "cpu").transformer.state_dict()
    for name, value in weights.items():
        assert torch.equal(value, averages.read(f"transformer.{name}", value)), name
