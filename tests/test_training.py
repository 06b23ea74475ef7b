"""Algorithm 1 end to end: golden losses, exact resume after a kill, and what a checkpoint holds.

`RVEDIT_WRITE_GOLDEN=1 pytest tests/test_training.py` stores the golden losses anew.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, losses_of, make_mllm, make_vae
from diffusers.models.autoencoders.vae import DecoderOutput
from peft import LoraConfig, LoraModel
from PIL import Image
from processes import Command, rvedit, train_words
from safetensors import safe_open
from safetensors.torch import load_file
from test_recipes import OVERLAY, PAPER

from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader
from rvedit.pipelines.loading import load_pipeline
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask, merge_lora
from rvedit.training.loop import _utilization, rate_fraction
from rvedit.training.optimizers import Muon, NamedOptimizer
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.recipe_sections import AlignmentRecipe, OptimizerRecipe, VAELossRecipe
from rvedit.training.run import train
from rvedit.training.state import latest_checkpoint
from rvedit.training.step import sample_noise_and_timesteps, sample_trace_block
from rvedit.training.trainable import LORA_TARGETS
from rvedit.training.vae import ClipBatch, VAEObjective
from rvedit.training.validation import ValidationClip, write_validation

GOLDEN = Path(__file__).parent / "assets" / "golden_losses.json"


def test_golden_run(recipe_of, tmp_path, vae_run):
    """Of nano from scratch, which the other runs here are not."""
    nano = ("model.init_from=null", f"model.vae_from={vae_run}", "model.routing_depth=4")
    _, recipe = recipe_of("golden", "steps=20", "checkpoint_every=20", "data.still_share=0.5", *nano)
    steps = [{k: s[k] for k in ("loss_fm", "loss_align")} for s in train(recipe, tmp_path, "cpu")]
    if os.environ.get("RVEDIT_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(steps, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for key in ("loss_fm", "loss_align"):
        got, stored = ([step[key] for step in run] for run in (steps, golden))
        np.testing.assert_allclose(got, stored, rtol=2e-3)
    assert np.mean([s["loss_fm"] for s in steps[-5:]]) < np.mean([s["loss_fm"] for s in steps[:5]])


@pytest.mark.slow
@pytest.mark.parametrize("option", ["optimizer.name=adamw", "optimizer.name=muon", "alignment.ratio=0.1"])
def test_a_killed_run_resumes_exactly(recipe_of, tmp_path, option):
    options = (option, "ema_decay=0.9")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))

    killed = [*options, "name=killed"]
    words = words_of(path, tmp_path, *killed)
    process = Command(*words, cwd=tmp_path)
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 4:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert len(losses_of(tmp_path, "killed")) >= 4
    rvedit(*words, cwd=tmp_path, check=0)

    assert losses_of(tmp_path, "killed") == losses_of(tmp_path, "whole")
    for file in (
        "transformer/diffusion_pytorch_model.safetensors",
        "connector/diffusion_pytorch_model.safetensors",
    ):
        a, b = (safe_open(tmp_path / run / "model" / file, "pt") for run in ("killed", "whole"))
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


def test_the_weight_of_alignment_rises_over_its_warm_up(recipe_of, tmp_path):
    """Eq. 6 with a weight that rises linearly, then stays."""
    _, recipe = recipe_of("warm", "alignment.weight=0.8", "alignment.warmup_steps=4", "steps=5")
    assert [recipe.alignment.weight_at(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    list(train(recipe, tmp_path, "cpu"))
    rows = [json.loads(line) for line in (tmp_path / "warm/metrics.jsonl").read_text().splitlines()]
    for row, weight in zip(rows, (0.2, 0.4, 0.6, 0.8, 0.8), strict=True):
        assert row["loss"] == pytest.approx(row["loss_fm"] + weight * row["loss_align"], rel=1e-5)
    assert AlignmentRecipe(weight=0.3).weight_at(0) == 0.3


def test_training_and_its_edits_share_noise_over_frames(recipe_of, tmp_path):
    _, recipe = recipe_of("shared", "flow.shared_noise_ratio=0.6", "steps=1")
    list(train(recipe, tmp_path, "cpu"))
    pipeline = load_pipeline(str(tmp_path / "shared"), "cpu")
    assert pipeline.config.shared_noise_ratio == 0.6
    edits = pipeline._draw_noise(torch.Size((4, 24, 3, 16, 16)), torch.Generator().manual_seed(0))
    _, *trained = sample_noise_and_timesteps(0, range(4), (24, 3, 16, 16), 0.6)
    for noise in (edits, *trained):
        correlation = torch.corrcoef(noise.movedim(2, 0).flatten(1))
        torch.testing.assert_close(
            correlation[~torch.eye(3, dtype=bool)], torch.full((6,), 0.6), atol=0.03, rtol=0
        )
        assert abs(noise.std() - 1) < 0.02
    assert not torch.equal(*trained)


@pytest.mark.slow
def test_an_edited_recipe_is_not_mixed_into_a_run(recipe_of, tmp_path):
    _, recipe = recipe_of("mine", "steps=2")
    list(train(recipe, tmp_path, "cpu"))
    _, other = recipe_of("mine", "steps=2", "alignment.weight=0.1")
    with pytest.raises(UserError, match=r"another alignment.*`fresh`"):
        list(train(other, tmp_path, "cpu"))
    _, muon = recipe_of("mine", "steps=2", "optimizer.name=muon")
    with pytest.raises(UserError, match=r"another optimizer\.name.*`fresh`"):
        list(train(muon, tmp_path, "cpu"))
    _, shorter = recipe_of("mine", "steps=1", "alignment.weight=0.1")
    assert len(list(train(shorter, tmp_path, "cpu", fresh=True))) == 1
    assert latest_checkpoint(tmp_path / "mine").name == "step_00000001", "none of the old run is gone on from"
    assert [step["step"] for step in train(other, tmp_path, "cpu")] == [1]


def test_the_text_encoder_drops_nothing_out(recipe_of):
    """umT5's dropout is 0.1 by default; gradient checkpointing wants the others in training mode."""
    _, recipe = recipe_of("mode", "steps=1")
    task = EditorTask(recipe, Processes("ddp", "cpu"))
    task.objective.train()
    modes = {name: {m.training for m in part.modules()} for name, part in task.objective.named_children()}
    assert modes.pop("text_encoder") == {False}
    assert all(True in found for found in modes.values())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.height=40", "40x32: height and width must be multiples of 16: try"),
        ("data.num_frames=6", r"the VAE takes 4k\+1 frames, not 6"),
        ("data.crop=16", "data.crop is for task: vae"),
        ("parallel=fsdp2", "needs the processes of torchrun"),
    ],
)
def test_what_a_training_cannot_take_is_said(recipe_of, tmp_path, setting, said):
    _, recipe = recipe_of("odd", setting)
    with pytest.raises(UserError, match=said):
        list(train(recipe, tmp_path, "cpu"))


def test_the_resolved_recipe_and_versions_are_kept(recipe_of, tmp_path):
    _, recipe = recipe_of("kept", "steps=1")
    list(train(recipe, tmp_path, "cpu"))
    assert load_recipe(tmp_path / "kept" / "recipe.yaml") == recipe
    assert "torch:" in (tmp_path / "kept" / "versions.yaml").read_text()


def test_weights_of_the_5b_are_asked_for_before_anything_is_built(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("model: {preset: wan2.2-5b}\n")
    with pytest.raises(UserError, match=r"wan2.2-5b cannot be trained from scratch.*nano"):
        list(train(load_recipe(path), tmp_path, "cpu"))


def test_depths_are_uniform_and_known_before_the_forward_pass():
    depths = [sample_trace_block(seed=0, step=step, num_layers=4) for step in range(2000)]
    assert depths == [sample_trace_block(0, step, 4) for step in range(2000)]
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


def test_muon_steps_as_torchs_own_does():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 40), (40, 24), (24, 40))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        Muon(ours, lr=1e-2, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):  # torch's computes in bf16
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def words_of(path, tmp_path, *assignments):
    """The command line of a small run."""
    return train_words(path, tmp_path, *SMALL, *assignments)


def wait_for_steps(log, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{count} steps were not seen")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_ends_cleanly(recipe_of, tmp_path, number, code):
    path, _ = recipe_of("stopped", "steps=200", "checkpoint_every=1000")
    words = words_of(path, tmp_path, "steps=200", "checkpoint_every=1000", "data.workers=1")
    process = Command(*words, cwd=tmp_path, own_group=True)
    wait_for_steps(tmp_path / "stopped" / "metrics.jsonl", 3, process)
    os.killpg(process.pid, number)  # its data workers get it too, as schedulers and terminals have it
    done = process.finish(timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    steps = len(losses_of(tmp_path, "stopped"))
    assert f"stopped after step {steps}, which is saved: run it again to resume" in done.stderr
    assert latest_checkpoint(tmp_path / "stopped").name == f"step_{steps:08d}"


@pytest.mark.slow
def test_ten_kills_at_random_moments(recipe_of, tmp_path):
    options = ("steps=60", "checkpoint_every=3", "data.workers=0", "ema_decay=0.9")
    path, recipe = recipe_of("whole", *options)
    list(train(recipe, tmp_path, "cpu"))
    words = words_of(path, tmp_path, *options, "name=killed")
    rng = np.random.default_rng(0)
    log = tmp_path / "killed" / "metrics.jsonl"
    for kill in range(10):
        process = Command(*words, cwd=tmp_path)
        wait_for_steps(log, 5 * kill + 1, process)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.finish()
    rvedit(*words, cwd=tmp_path, check=0)
    assert losses_of(tmp_path, "killed") == losses_of(tmp_path, "whole")


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(recipe_of, tmp_path):
    _, recipe = recipe_of("torn", "steps=4")
    whole = list(train(recipe, tmp_path, "cpu"))
    newest = latest_checkpoint(tmp_path / "torn")
    assert newest.name == "step_00000004"
    file = next(newest.glob("optimizer-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert latest_checkpoint(tmp_path / "torn").name == "step_00000002"
    again = list(train(recipe, tmp_path, "cpu"))
    assert [s["step"] for s in again] == [2, 3]
    assert [s["loss"] for s in again] == [s["loss"] for s in whole[2:]]


@pytest.mark.slow
def test_losses_that_are_not_finite_are_skipped_and_counted(recipe_of, tmp_path, monkeypatch):
    from rvedit.training import editor

    original = editor.training_losses
    bad = {1, 3, 4}

    def sometimes_not_finite(*args):
        losses = original(*args)
        return {k: v * float("nan") if args[5] in bad else v for k, v in losses.items()}

    monkeypatch.setattr(editor, "training_losses", sometimes_not_finite)
    _, recipe = recipe_of("rough", "max_skipped=3")
    steps = list(train(recipe, tmp_path, "cpu"))
    assert [s["skipped"] for s in steps] == [0, 1, 1, 2, 3, 3]
    weights = load_file(tmp_path / "rough" / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    _, strict = recipe_of("strict", "max_skipped=1")
    with pytest.raises(UserError, match=r"not finite in 2 steps, the last of them 3: lower optimizer.learn"):
        list(train(strict, tmp_path, "cpu"))


@pytest.mark.slow
def test_a_run_with_spoiled_weights_stops_and_names_the_last_good_checkpoint(recipe_of, tmp_path):
    """One update with an absurd rate, after which no loss is finite; its checkpoint is not a good one."""
    list(train(recipe_of("spoiled", "steps=4")[1], tmp_path, "cpu"))
    hot = ("optimizer.learning_rate=1e30", "checkpoint_every=1")
    said = r"not finite since step 5: .*; the last good checkpoint is .*/step_00000004: remove newer ones"
    for steps, skipped in ((30, 10), (8, 3)):  # stopped, and at the end
        with pytest.raises(UserError, match=said):
            list(train(recipe_of("spoiled", *hot, f"steps={steps}")[1], tmp_path, "cpu"))
        assert len(losses_of(tmp_path, "spoiled")) == 5 + skipped
    shutil.rmtree(tmp_path / "spoiled" / "checkpoints" / "step_00000005")
    assert [step["step"] for step in train(recipe_of("spoiled")[1], tmp_path, "cpu")] == [4, 5]
    with pytest.raises(
        UserError, match=r"since step 1: .*; there is no good checkpoint: start over with `fresh`"
    ):
        list(train(recipe_of("spoiled", *hot, "steps=3")[1], tmp_path, "cpu", fresh=True))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(recipe_of, tmp_path):
    """The limit on a file's size stands in for the disk: the error comes from the same write."""
    path, recipe = recipe_of("full", "steps=2")
    list(train(recipe, tmp_path, "cpu"))
    before = latest_checkpoint(tmp_path / "full")
    command = [sys.executable, "-m", "rvedit_cli", *words_of(path, tmp_path, "steps=4", "name=full")]
    limited = f"ulimit -f 2000; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "the checkpoint could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert latest_checkpoint(tmp_path / "full") == before
    assert not list((tmp_path / "full" / "checkpoints").glob("*.part"))


@pytest.mark.slow
def test_adapters_are_trained_and_merged(recipe_of, tmp_path):
    options = ("model.lora_rank=4", "model.frozen=[text_encoder, mllm.model.visual]", "steps=3")
    _, recipe = recipe_of("adapted", *options, "optimizer.learning_rate=1e-2")
    list(train(recipe, tmp_path, "cpu"))
    _, plain = recipe_of("start", "steps=1", "optimizer.learning_rate=1e-9")
    list(train(plain, tmp_path, "cpu"))
    adapted, start = (
        load_file(tmp_path / run / "model" / "mllm" / "model.safetensors") for run in ("adapted", "start")
    )
    assert adapted.keys() == start.keys()
    moved = {k for k, v in adapted.items() if not torch.allclose(v, start[k], atol=1e-6)}
    assert moved
    assert all(any(f".{layer}." in key for layer in LORA_TARGETS) for key in moved)
    for key in moved:
        if key.endswith("q_proj.weight"):
            assert torch.linalg.matrix_rank(adapted[key] - start[key], rtol=1e-3) <= 4


def test_merging_adapters_is_pefts_own_merge(tiny_tokenizer):
    torch.manual_seed(0)
    tower = make_mllm(tiny_tokenizer).model.language_model
    adapters = LoraModel(tower, LoraConfig(r=3, lora_alpha=6, target_modules=list(LORA_TARGETS)), "default")
    for name, parameter in tower.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    merged = merge_lora(dict(tower.state_dict()), adapters)
    expected = adapters.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(merged[key], value, rtol=1e-5, atol=1e-5)


ADAPTERS = ("model.lora_rank=4", "model.frozen=[text_encoder, mllm.model.visual]")


@pytest.mark.parametrize(("options", "again"), [((), [2, 2]), (ADAPTERS, [2, 1])])
def test_checkpointing_recomputes_layers_of_the_mllm_and_changes_no_gradient(
    recipe_of, count_calls, options, again
):
    """Of the language tower, and of the vision encoder if it is trained."""
    gradients = {}
    for checkpointing, times in ((False, [1, 1]), (True, again)):
        _, recipe = recipe_of(
            "kept", f"model.gradient_checkpointing={checkpointing}", "alignment.weight=0", *options
        )
        torch.manual_seed(0)  # of the adapters
        task = EditorTask(recipe, Processes("ddp", "cpu"))
        task.objective.train()
        model = task.objective.mllm.model
        layers = model.language_model.layers[0].input_layernorm, model.visual.blocks[0].norm1
        inside = [count_calls(layer) for layer in layers]
        task.objective(next(task.batches([[0, 1]])), 0)["loss"].backward()
        assert [len(calls) for calls in inside] == times
        named = task.objective.named_parameters()
        gradients[checkpointing] = {name: p.grad for name, p in named if p.grad is not None}
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_checkpointing_and_accumulation_change_no_loss(recipe_of, tmp_path):
    runs = {
        "plain": (),
        "checkpointed": ("model.gradient_checkpointing=true",),
        "accumulated": ("accumulation=2",),
    }
    losses = {}
    for name, options in runs.items():
        _, recipe = recipe_of(name, "steps=4", *options)
        list(train(recipe, tmp_path, "cpu"))
        losses[name] = losses_of(tmp_path, name)
    assert losses["checkpointed"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["accumulated"] == pytest.approx(losses["plain"], rel=1e-4)


def test_validation_edits_and_logs_are_written(recipe_of, tmp_path, capsys):
    options = ("validation.every=2", "validation.count=2", "validation.num_inference_steps=1", "steps=4")
    _, recipe = recipe_of("shown", *options)
    steps = list(train(recipe, tmp_path, "cpu"))
    # No bar of denoising steps; the libraries that write weights have bars with names.
    assert "\r  0%|" not in capsys.readouterr().err
    folder = tmp_path / "shown"
    for step in (2, 4):
        picture = Image.open(folder / "validation" / f"step_{step:08d}.png")
        assert picture.size == (6 * 32, 2 * 32)
        with VideoReader(folder / "validation" / f"step_{step:08d}" / "0.mp4") as reader:
            assert (reader.info.num_frames, reader.info.width, reader.info.height) == (5, 66, 32)
    assert list((folder / "tensorboard").glob("events.*"))
    assert {"loss_fm", "loss_align", "rate", "clips_per_second", "memory_gb", "waited"} <= steps[0].keys()
    pipeline = load_pipeline(str(folder), "cpu")  # the run's folder edits at once
    assert pipeline.transformer.config.routing_depth == recipe.model.routing_depth == 2


def test_validation_of_clips_longer_than_a_window_shows_the_first_window(tmp_path):
    source, target = (np.full((13, 16, 16, 3), level, np.uint8) for level in (0, 255))
    clip = ValidationClip(source, target, "make it white", 12)
    write_validation(tmp_path, 2, [clip], [np.full((9, 16, 16, 3), 100, np.uint8)])
    with VideoReader(tmp_path / "step_00000002" / "0.mp4") as reader:
        assert reader.info.num_frames == 9
    sheet = np.asarray(Image.open(tmp_path / "step_00000002.png"))
    assert sheet[0, ::16, 0].tolist() == [0, 0, 100, 100, 255, 255]


@pytest.mark.slow
def test_every_recipe_of_the_paper_trains_at_nano_size(tmp_path):
    """In one process: the tokenizer's corpus and the VAE are made once."""
    quick = ("steps=2", "checkpoint_every=2", "optimizer.name=adamw")  # Muon's steps cost most
    for path in PAPER:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            recipe = load_recipe(path, [OVERLAY], [*SMALL, *quick])
        steps = list(train(recipe, tmp_path, "cpu"))
        assert len(steps) == 2, path.stem
        assert all(np.isfinite(s["loss"]) for s in steps), path.stem
        assert ("loss_align" in steps[0]) == bool(recipe.alignment.weight), path.stem
        pipeline = load_pipeline(str(tmp_path / recipe.name), "cpu")
        assert pipeline.transformer.config.routing_depth == recipe.model.routing_depth, path.stem


def test_changes_from_frame_to_frame_count_for_the_vae():
    """An error that all frames share costs nothing more; one that comes and goes does."""
    plain, weighted = (
        Recipe(task="vae", vae_loss=VAELossRecipe(change_weight=weight)) for weight in (0.0, 0.5)
    )
    torch.manual_seed(0)
    vae = make_vae()
    clip = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        losses = [VAEObjective(vae, recipe)(ClipBatch(clip, [0, 1]), 0) for recipe in (plain, weighted)]
        posterior = vae.encode(clip).latent_dist
        noise = sample_noise_and_timesteps(0, [0, 1], posterior.mean.shape[1:])[1]
        error = vae.decode(posterior.mean + posterior.std * noise).sample - clip
    expected = 0.5 * (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    torch.testing.assert_close(losses[1]["loss"] - losses[0]["loss"], expected, atol=1e-5, rtol=1e-4)
    assert losses[0]["l1"] == losses[1]["l1"]
    # Latents cover one frame, then four each: the first of four changes is where two of them meet.
    factored = Recipe(task="vae", vae_loss=VAELossRecipe(change_weight=0.5, border_weight=3.0))
    with torch.no_grad():
        loss = VAEObjective(vae, factored)(ClipBatch(clip, [0, 1]), 0)["loss"]
    more = 2.0 * 0.5 * (error[:, :, 1] - error[:, :, 0]).abs().mean() / 4
    torch.testing.assert_close(loss - losses[1]["loss"], more, atol=1e-5, rtol=1e-4)
    still = ClipBatch(clip[:, :, :1], [0, 1])
    assert VAEObjective(vae, weighted)(still, 0)["loss"] == VAEObjective(vae, plain)(still, 0)["loss"]


def test_how_much_each_frame_changes_counts_for_the_vae(monkeypatch):
    """A frame that lags behind and the one that catches up; not where in the picture the changes are."""
    vae = make_vae()
    clip = torch.zeros(1, 3, 5, 32, 32)
    for frame in range(5):
        clip[:, :, frame, :, : 4 + 4 * frame] = 1.0  # a bar that grows by 4 columns of 32
    lagging = clip.clone()
    lagging[:, :, 2] = clip[:, :, 1]
    losses = {}
    for weight in (0.0, 2.0):
        for name, decoded in (("lagging", lagging), ("turned", clip.transpose(3, 4))):
            monkeypatch.setattr(vae, "decode", lambda _, clip=decoded: DecoderOutput(sample=clip))
            objective = VAEObjective(vae, Recipe(task="vae", vae_loss=VAELossRecipe(motion_weight=weight)))
            losses[name, weight] = objective(ClipBatch(clip, [0]), 0)["loss"].item()
    expected = 2.0 * np.mean([0, 4 / 32, 4 / 32, 0])  # changes of 4, 0, 8 and 4 columns
    assert losses["lagging", 2.0] - losses["lagging", 0.0] == pytest.approx(expected, abs=1e-6)
    assert losses["turned", 2.0] == pytest.approx(losses["turned", 0.0], abs=1e-6)


def test_the_decoder_can_be_trained_on_latents_with_noise():
    """Each clip's noise is uniform between nothing and the given share of the latents' scale."""
    torch.manual_seed(0)
    vae = make_vae()
    clip = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        noisy = VAEObjective(vae, Recipe(task="vae", vae_loss=VAELossRecipe(latent_noise=0.5)))(
            ClipBatch(clip, [3, 4]), 0
        )
        posterior = vae.encode(clip).latent_dist
        level, noise, other = sample_noise_and_timesteps(0, [3, 4], posterior.mean.shape[1:])
        scale = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        latents = posterior.mean + posterior.std * noise + 0.5 * level.view(2, 1, 1, 1, 1) * scale * other
        expected = (vae.decode(latents).sample - clip).abs().mean()
    torch.testing.assert_close(noisy["l1"], expected)


def test_the_utilization_of_gpus_is_that_of_their_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    gpus = SimpleNamespace(device=torch.device("cuda", 0), count=4)
    used = _utilization(8e15, 5.0, gpus)
    assert used == pytest.approx({"tflops_per_gpu": 400.0, "mfu": 400 / 989})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert _utilization(8e15, 5.0, gpus) == pytest.approx({"tflops_per_gpu": 400.0})
    assert _utilization(8e15, 5.0, SimpleNamespace(device=torch.device("cpu"), count=1)) == {}


def test_a_tracker_that_is_not_installed_is_named(recipe_of, tmp_path, monkeypatch):
    monkeypatch.setattr("rvedit.training.log.is_wandb_available", lambda: False)
    _, recipe = recipe_of("tracked", "tracker=wandb", "steps=1")
    with pytest.raises(UserError, match=r"tracker: wandb is not installed: pip install wandb"):
        list(train(recipe, tmp_path, "cpu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_train_alike(recipe_of, tmp_path):
    options = ("steps=2", "data.still_share=0")
    path, recipe = recipe_of("plain", *options)
    list(train(recipe, tmp_path, "cpu"))
    # In a process of its own, without the checks of shapes, which cannot be compiled.
    command = [sys.executable, "-m", "rvedit_cli", "train", str(path), "--runs", str(tmp_path)]
    settings = [*SMALL, *options, "name=compiled", "compile=true"]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run([*command, "--device", "cpu"], check=True, timeout=500)
    assert losses_of(tmp_path, "compiled") == pytest.approx(losses_of(tmp_path, "plain"), rel=1e-4)
