"""A user's own pairs: what is checked and shown, and LoRA weights trained from them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, losses_of, random_clip
from PIL import Image
from processes import rvedit
from safetensors.torch import load_file
from test_sources import clip, source_clip, target_clip, write_csv

from rvedit.datasets.pairs import shape_counts, write_pairs_sheet
from rvedit.datasets.prepare import prepare_dataset
from rvedit.datasets.survey import DatasetConfig
from rvedit.io.clips import UnreadableClip, read_mask, read_pair
from rvedit.io.errors import UserError
from rvedit.io.manifest import failures_path, read_manifest, read_rows
from rvedit.io.records import ClipShape
from rvedit.losses.flow_matching import flow_matching_loss
from rvedit.models.quantized_linear import Fp8Linear, store_weights
from rvedit.pipelines.loading import load_pipeline
from rvedit.training.costs import EditorCosts
from rvedit.training.data import held_out_samples, split_held_out
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.plan import GPU_RATE, GPU_RATE_FP32, plan_training
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

RECIPES = Path(__file__).parents[1] / "recipes"
LORA = "pytorch_lora_weights.safetensors"
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
ALL_ROWS = ("validation.held_out=0", "validation.timesteps=[]")
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")


def prepare(folder: Path):
    report = prepare_dataset(
        DatasetConfig("pairs", (folder,), folder.parent / "out", min_frames=1, workers=1)
    )
    return report.manifest, read_manifest(report.manifest)


def write_pairs(folder: Path, count: int = 4, size: int = 32) -> Path:
    """Pairs of clips of 5 frames; the odd ones are images."""
    for index in range(count):
        for side, seed in (("source", index), ("target", index + 100)):
            path = folder / side / f"p{index}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if index % 2:
                Image.fromarray(random_clip(1, size, size, seed=seed)[0]).save(path.with_suffix(".png"))
            else:
                clip(path.with_suffix(".mp4"), 40 + seed, height=size, width=size)
    (folder / "instruction.txt").write_text("make it new\n", encoding="utf-8")
    return folder


# --- preparing -------------------------------------------------------------------------------------------


def test_folders_and_a_csv_file_give_the_same_pairs(tmp_path):
    folder = write_pairs(tmp_path / "a" / "pairs")
    (folder / "p0.txt").write_text("\ufeffmake the fish\n orange\n", encoding="utf-8")
    (folder / "target" / "p1.txt").write_text("remove the ball", encoding="utf-8")
    (folder / "source" / ".DS_Store").write_bytes(b"x")
    (folder / "mask").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "mask" / "p0.png")
    manifest, rows = prepare(folder)
    texts = ["make the fish orange", "remove the ball", "make it new", "make it new"]
    assert [row.instruction for row in rows] == texts
    assert [row.num_frames for row in rows] == [5, 1, 5, 1]
    assert [row.mask for row in rows] == ["mask/p0.png", None, None, None]
    assert (rows[1].category, rows[0].dataset, rows[0].fps) == ("remove", "pairs", 12.0)
    assert shape_counts(rows) == {"video of 5 frames, 32x32": 2, "image, 32x32": 2}
    assert read_rows(failures_path(manifest)) == []

    names = [(row.source, row.target, row.instruction, row.mask or "") for row in rows]
    write_csv(folder / "pairs.csv", ("source", "target", "instruction", "mask"), names)
    assert prepare(folder)[1] == rows


def test_pairs_that_do_not_fit_are_named(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=1)
    for name in ("alone", "twice", "size", "rate", "length", "mask", "short_mask"):
        source_clip(folder / "source" / f"{name}.mp4", num_frames=9)
    for name in ("twice", "rate", "mask", "short_mask"):
        target_clip(folder / "target" / f"{name}.mp4", num_frames=9)
    target_clip(folder / "target" / "size.mp4", num_frames=9, width=24)
    target_clip(folder / "target" / "length.mp4", num_frames=5)
    target_clip(folder / "target" / "twice.mov", num_frames=9)
    from rvedit.io.video import write_clip

    write_clip(folder / "target" / "rate.mp4", random_clip(9, 24, 32), 24)
    clip(folder / "mask" / "mask.mp4", 200, num_frames=9, width=24)
    clip(folder / "mask" / "short_mask.mp4", 200, num_frames=4)
    manifest, rows = prepare(folder)
    assert [row.source for row in rows] == ["source/p0.mp4"]
    failed = {row["reason"]: row["detail"] for row in read_rows(failures_path(manifest))}
    assert failed == {
        "unreadable row": "twice: target has twice.mov and twice.mp4: keep one of them",
        "sizes differ": "source 32x24, target 24x24",
        "frame rates differ": "source 12 fps, target 24",
        "lengths differ": "source 9 frames, target 5",
        "mask sizes differ": "mask 24x24, clips 32x24",
        "mask is too short": "mask 4 frames, clips 9",
    }
    details = [row["detail"] for row in read_rows(failures_path(manifest))]
    assert "alone: there is no target" in details


def test_a_pair_without_an_instruction_is_named(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=1)
    (folder / "instruction.txt").unlink()
    with pytest.raises(UserError, match=r"p0: there is no p0\.txt with its instruction, and no instruction"):
        prepare(folder)


def test_folders_of_images_are_read_and_their_changes_noticed(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=2)
    for side, level in (("source", 40), ("target", 90)):
        images = folder / side / "walk"
        images.mkdir()
        for number in range(5):
            Image.fromarray(np.full((32, 32, 3), level + number, np.uint8)).save(images / f"{number}.png")
    damaged = folder / "source" / "walk" / "4.png"
    damaged.write_bytes(b"no image")
    manifest, rows = prepare(folder)
    assert [row.source for row in rows] == ["source/p0.mp4", "source/p1.png"]
    Image.fromarray(np.full((32, 32, 3), 44, np.uint8)).save(damaged)
    manifest, rows = prepare(folder)
    walk = next(row for row in rows if row.source == "source/walk")
    source, target = read_pair(manifest, walk, ClipShape(5, 32, 32))
    assert (source[4, 0, 0, 0], target[4, 0, 0, 0]) == (44, 94)


def test_an_image_as_a_mask_is_shown_on_both_ends(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=1)
    (folder / "mask").mkdir()
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(folder / "mask" / "p0.png")
    manifest, rows = prepare(folder)
    write_pairs_sheet(manifest, rows, tmp_path / "sheet.png")
    row = np.asarray(Image.open(tmp_path / "sheet.png"))[24 : 24 + 128]
    red, green, _ = (np.float64([row[:, x : x + 128, c].mean() for x in (0, 132, 264)]) for c in range(3))
    assert (red[:2] > green[:2] + 50).all(), "both ends of the source are tinted"
    assert abs(red[2] - green[2]) < 5


def test_the_command_shows_what_will_be_learned(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    source_clip(folder / "source" / "alone.mp4")
    shown = rvedit("prepare", "pairs", "pairs", "--out", "out", cwd=tmp_path, check=0).stdout
    assert "2 x video of 5 frames, 32x32" in shown
    assert "left out: a pair (unreadable row): alone: there is no target" in shown
    assert "next: rvedit train recipes/pairs_lora.yaml --set data.manifest=out/manifest.parquet" in shown
    with Image.open(tmp_path / "out" / "pairs.png") as sheet:
        assert sheet.height == 4 * (128 + 24 + 4)
        pixels = np.asarray(sheet)
    row = pixels[24 : 24 + 128]  # of p0: first and last frame of the source, then of the target
    frames = [row[:, x : x + 128].mean() for x in (0, 132, 264, 396)]
    assert np.array(frames) == pytest.approx([40, 40, 140, 140], abs=6)
    result = rvedit("prepare", "pairs", "pairs", "--out", "out", "--json", cwd=tmp_path, check=0).stdout
    assert json.loads(result)["shapes"] == {"video of 5 frames, 32x32": 2, "image, 32x32": 2}
    wrong = rvedit("prepare", "pairs", "out", "--out", "o2", cwd=tmp_path, check=2).stderr
    assert "expected folders source and target, or a CSV file" in wrong


# --- masks -----------------------------------------------------------------------------------------------


def test_weights_of_the_loss_by_hand():
    velocity, target = torch.zeros(1, 1, 1, 1, 4), torch.zeros(1, 1, 1, 1, 4)
    noise = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 1, 1, 4)
    weights = torch.tensor([3.0, 1, 1, 1]).view(1, 1, 1, 1, 4)
    # Weights by their mean of 1.5: 2, 2/3, 2/3, 2/3.
    expected = (2 * 1 + 2 / 3 * (4 + 9 + 16)) / 4
    assert float(flow_matching_loss(velocity, target, noise, weights)) == pytest.approx(expected)
    ones = torch.ones_like(weights)
    assert flow_matching_loss(velocity, target, noise, ones) == flow_matching_loss(velocity, target, noise)


def test_a_mask_is_one_image_or_a_clip(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=3)
    (folder / "mask").mkdir()
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(folder / "mask" / "p0.png")
    manifest, rows = prepare(folder)
    masks = read_mask(manifest, rows[0], ClipShape(5, 16, 16))
    assert masks.shape == (5, 16, 16)
    assert masks[:, :, :7].all()
    assert not masks[:, :, 9:].any()
    (folder / "mask" / "p0.png").write_bytes(b"no image")
    with pytest.raises(UnreadableClip, match=r"p0\.png"):
        read_mask(manifest, rows[0], ClipShape(5, 16, 16))


def test_masks_weight_the_loss_of_their_samples_only(tmp_path):
    folder = write_pairs(tmp_path / "pairs", count=3)
    (folder / "mask").mkdir()
    white = np.zeros((32, 32, 3), np.uint8)
    white[:8, :8] = 255
    Image.fromarray(white).save(folder / "mask" / "p0.png")
    manifest, _ = prepare(folder)
    recipe = small_recipe(tmp_path, manifest, "data.mask_weight=3", *ALL_ROWS, "batch_size=2")
    task = EditorTask(recipe, Processes("ddp", "cpu"))
    numbers = range(4)  # two batches: of clips and of images, in the order of the seed
    weights = [task.collate([task.samples[n] for n in pair]).loss_weights for pair in ((0, 1), (2, 3))]
    of_clips = next(w for w in weights if w is not None)
    assert len(numbers) == 4
    assert set(of_clips.unique().tolist()) <= {1.0, 3.0}
    per_sample = of_clips.amax(dim=(1, 2, 3, 4)).tolist()
    assert sorted(set(per_sample)) in ([3.0], [1.0, 3.0])
    inside = of_clips[per_sample.index(3.0), 0]
    cells = inside == 3
    assert cells.any()
    assert not cells.all()
    assert cells[:, -1, -1].any().item() is False
    plain = EditorTask(small_recipe(tmp_path, manifest, *ALL_ROWS), Processes("ddp", "cpu"))
    assert all(plain.collate([plain.samples[n]]).loss_weights is None for n in range(3))


# --- training --------------------------------------------------------------------------------------------


def small_recipe(folder: Path, manifest: Path, *assignments: str, name: str = "lora"):
    sizes = [
        text for text in SMALL if text.split("=")[0] not in ("data.height", "data.width", "data.num_frames")
    ]
    shapes = "data.buckets=[{num_frames: 5, height: 32, width: 32}, {num_frames: 1, height: 32, width: 32}]"
    settings = (
        *sizes, f"data.manifest={manifest}", shapes, "steps=4", "batch_size=1", "data.workers=0",
        "optimizer.warmup_steps=0", "optimizer.decay_steps=0", "validation.every=0", "checkpoint_every=2",
        f"name={name}", "model.transformer_lora_rank=4", *assignments,
    )  # fmt: skip
    return load_recipe(RECIPES / "pairs_lora.yaml", [RECIPES / "nano_pairs.yaml"], settings)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return prepare(write_pairs(tmp_path_factory.mktemp("data") / "pairs", count=6))[0]


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory) -> Path:
    """A run of four steps."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = small_recipe(runs, manifest, "validation.every=2", "validation.held_out=2", "validation.count=1")
    list(train(recipe, runs, "cpu"))
    return runs / "lora"


def test_the_result_is_a_small_file_that_edits(trained, tmp_path):
    state = load_file(trained / "model" / LORA)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    names = {key.rpartition(".lora_")[0] for key in state}
    assert all(key.startswith("transformer.blocks.") for key in state)
    assert {name.split(".", 3)[3].removeprefix("attn1.").removeprefix("attn2.") for name in names} >= {"to_q"}
    assert all(any(name.endswith(f".{target}") for target in targets) for name in names)
    assert [path.name for path in (trained / "model").iterdir()] == [LORA]
    moved = [key for key, value in state.items() if ".lora_B." in key and value.abs().max() > 0]
    assert moved

    video = random_clip(5, 32, 32)
    plain, ours = (load_pipeline("nano", "cpu", lora=lora) for lora in ((), [str(trained)]))
    theirs = load_pipeline("nano", "cpu")
    theirs.load_lora_weights(str(trained / "model"))  # diffusers' own
    edits = []
    for pipe in (plain, ours, theirs):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        edits.append(pipe(video, "make it new", num_inference_steps=2, generator=generator).frames[0])
    assert not np.array_equal(edits[0], edits[1])
    assert np.allclose(edits[1], edits[2], atol=1e-5)


def test_only_lora_weights_are_trained(manifest, tmp_path):
    task = EditorTask(small_recipe(tmp_path, manifest), Processes("ddp", "cpu"))
    names = {name for name, p in task.objective.named_parameters() if p.requires_grad}
    assert names
    assert all(".lora_" in name and name.startswith("transformer.blocks.") for name in names)
    changes = ("model.transformer_lora_alpha=8", "model.transformer_lora_targets=[to_q]")
    alpha = EditorTask(small_recipe(tmp_path, manifest, *changes), Processes("ddp", "cpu"))
    layers = dict(alpha.pipeline.transformer.named_modules())
    assert layers["blocks.0.attn1.to_q"].scaling["default"] == 2.0
    assert not hasattr(layers["blocks.0.attn1.to_k"], "scaling")


def test_two_runs_of_one_seed_are_one(manifest, tmp_path):
    """Also the LoRA weights of the language tower, which are drawn as the run starts."""
    for rank in ("model.transformer_lora_rank=4", "model.transformer_lora_rank=0"):
        states = []
        for _ in range(2):
            torch.rand(3)  # a state that the run must not depend on
            lora = ["model.lora_rank=4"] * rank.endswith("=0")
            task = EditorTask(small_recipe(tmp_path, manifest, rank, *lora), Processes("ddp", "cpu"))
            states.append({n: p for n, p in task.objective.named_parameters() if ".lora_A." in n})
        assert states[0]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.offload=true", "model.frozen_weights=fp8"),
        pytest.param(("optimizer.name=adamw8bit",), marks=needs_bitsandbytes),
    ],
)
def test_a_stopped_run_goes_on_exactly(manifest, tmp_path, settings):
    list(train(small_recipe(tmp_path, manifest, *settings, name="whole"), tmp_path, "cpu"))
    for steps in (2, 4):
        recipe = small_recipe(tmp_path, manifest, *settings, f"steps={steps}", name="parts")
        list(train(recipe, tmp_path, "cpu"))
    assert losses_of(tmp_path, "parts")[2:] == losses_of(tmp_path, "whole")[2:]
    whole, parts = (load_file(tmp_path / name / "model" / LORA) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_other_pairs_may_not_be_held_out_of_a_run_that_goes_on(manifest, tmp_path):
    list(train(small_recipe(tmp_path, manifest, "steps=2", "validation.held_out=2"), tmp_path, "cpu"))
    with pytest.raises(UserError, match="was started with another validation"):
        list(train(small_recipe(tmp_path, manifest, "validation.held_out=1"), tmp_path, "cpu"))
    more = small_recipe(tmp_path, manifest, "steps=3", "validation.held_out=2", "validation.count=1")
    assert len(list(train(more, tmp_path, "cpu"))) == 1


def test_offloading_changes_no_loss(manifest, tmp_path):
    settings = ("model.routing_depth=2", "alignment.weight=0")
    for name, offload in (("held", "false"), ("lent", "true")):
        recipe = small_recipe(tmp_path, manifest, *settings, f"model.offload={offload}", name=name)
        list(train(recipe, tmp_path, "cpu"))
    assert losses_of(tmp_path, "held") == losses_of(tmp_path, "lent")


@pytest.mark.parametrize(
    ("storage", "error"), [("bf16", 0.0), ("fp8", 0.05), pytest.param("nf4", 0.25, marks=needs_bitsandbytes)]
)
def test_small_frozen_weights_train_nearly_alike(manifest, tmp_path, storage, error):
    for name in ("fp32", storage):
        recipe = small_recipe(tmp_path, manifest, f"model.frozen_weights={name}", name=name)
        list(train(recipe, tmp_path, "cpu"))
    exact, small = (np.array(losses_of(tmp_path, name)) for name in ("fp32", storage))
    assert small == pytest.approx(exact, rel=error, abs=0)
    assert np.array_equal(small, exact) is (error == 0)  # the embedded weights are bf16


def test_stored_weights_pass_gradients_on():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Linear(16, 8))
    weights = [part.weight.detach().clone() for part in layer]
    store_weights(layer, torch.float8_e4m3fn, skipped=("1",))
    assert isinstance(layer[0], Fp8Linear)
    assert not layer[0].weight.requires_grad
    assert type(layer[1]) is torch.nn.Linear
    stands_for = layer[0].weight.float() * layer[0].scale
    # e4m3 has three bits after the point, so that a value is off by at most a sixteenth.
    assert ((stands_for - weights[0]).abs() <= weights[0].abs() / 16 + 1e-3 * weights[0].abs().max()).all()
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, (weights[1].sum(0) @ stands_for).expand(3, -1), atol=1e-6)


def test_held_out_pairs_are_not_trained_on(manifest, trained, tmp_path):
    rows = read_manifest(manifest)
    kept, held = split_held_out(rows, 2)
    assert (len(kept), len(held)) == (4, 2)
    assert split_held_out(rows[::-1], 2)[1][::-1] == held, "whatever the order"
    recipe = small_recipe(tmp_path, manifest, "validation.held_out=2")
    task = EditorTask(recipe, Processes("ddp", "cpu"))
    trained_on = {task.samples.triplet(number).key for number in range(40)}
    assert trained_on == {row.key for row in kept}
    samples, count = held_out_samples(recipe, task.pipeline)
    assert [samples.triplet(number).key for number in range(count)] == [row.key for row in held]
    records = [json.loads(line) for line in (trained / "validation.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 2, 4]
    assert records[0]["held_out_loss_unrouted"] > 0
    times = [records[0][f"held_out_loss_t{t}"] for t in (0.2, 0.5, 0.8)]
    assert records[0]["held_out_loss"] == pytest.approx(np.mean(times))
    assert (trained / "validation" / "step_00000004.png").is_file()
    with pytest.raises(UserError, match=r"validation\.held_out is 6: .* has 6 rows"):
        EditorTask(small_recipe(tmp_path, manifest, "validation.held_out=6"), Processes("ddp", "cpu"))


# --- the dry run -----------------------------------------------------------------------------------------


def test_the_dry_run_says_what_fits_small_gpus():
    recipe = load_recipe(RECIPES / "pairs_lora.yaml")
    plan = plan_training(recipe, gpu_memory=16e9)
    assert not plan.memory.fits
    assert plan.memory.total < 24e9
    assert any("model.frozen_weights: nf4" in remedy for remedy in plan.memory.remedies)
    assert {row.shape: row.smallest_gpu for row in plan.shapes}["17x704x1280"] == 16, "validation"
    recipe = load_recipe(RECIPES / "pairs_lora.yaml", assignments=["validation.every=0"])
    by_shape = {row.shape: row for row in plan_training(recipe).shapes}
    assert by_shape["81x704x1280"].smallest_gpu == 24
    assert by_shape["17x704x1280"].smallest_gpu == 12
    assert by_shape["81x704x1280"].activations > 1.5 * by_shape["81x480x832"].activations
    assert by_shape["81x704x1280"].weights == by_shape["1x480x832"].weights
    groups = {group.name: group for group in plan.parameters}
    assert groups["transformer LoRA weights"].trained == 80_609_280  # 30 blocks, 10 layers, rank 32
    assert sum(group.trained for group in plan.parameters) == 80_609_280
    assert plan.disk["trained model"] == 4 * 80_609_280


def test_the_dry_run_counts_small_weights_and_offloading():
    def parts(*assignments):
        recipe = load_recipe(RECIPES / "pairs_lora.yaml", [], assignments)
        return EditorCosts(recipe).memory(recipe, 1)

    small, half, whole = (
        parts(f"model.frozen_weights={kind}")["frozen weights"] for kind in ("fp8", "bf16", "fp32")
    )
    linear = 30 * (8 * 3072**2 + 2 * 3072 * 14336)
    assert whole - half == pytest.approx(2 * linear)
    assert half - small == pytest.approx(linear)
    # Without offloading the VAE in fp32 and the MLLM are there as well; the text encoder is not read.
    held = parts("model.offload=false")["frozen weights"] - small
    assert held == pytest.approx(4 * 0.7047e9 + 3.0e9 + 2 * 0.7e9, rel=0.15)
    moments = parts()["optimizer's moments"] / parts("optimizer.name=adamw")["optimizer's moments"]
    assert moments == pytest.approx(0.254, abs=0.001)


def test_the_dry_run_prices_the_vae_in_fp32(tmp_path):
    recipe = load_recipe(RECIPES / "rvedit.yaml")
    compute = plan_training(recipe, 8).compute
    vae = compute.per_clip["VAE, both clips"] * recipe.batch_size * recipe.steps
    hours = ((compute.per_run - vae) / GPU_RATE + vae / GPU_RATE_FP32) / 8 / 3600
    assert compute.hours == pytest.approx(hours)
    assert compute.hours > 1.5 * compute.per_run / GPU_RATE / 8 / 3600


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.buckets=[{num_frames: 81, height: 720, width: 1280}]", "multiples of 32: try 704x1280"),
        ("data.buckets=[{num_frames: 80, height: 704, width: 1280}]", r"takes 4k\+1 frames, not 80"),
        ("model.lora_rank=4", "transformer_lora_rank freezes the MLLM"),
        ("model.transformer_lora_rank=0", "frozen_weights and offload are for LoRA weights"),
        ("task=distill", "transformer_lora_rank is for task: editor, not distill"),
        ("parallel=fsdp2", "transformer_lora_rank cannot be sharded: set parallel: ddp"),
        ("validation.held_out=0", "validation.timesteps needs held-out rows: set validation.held_out"),
        ("validation.timesteps=[200]", "less than or equal to 1"),
        ("model.transformer_lora_targets=[query]", "query: no layer has it: choose from attn1.to_q"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(setting, said):
    with pytest.raises(UserError, match=said):
        plan_training(load_recipe(RECIPES / "pairs_lora.yaml", [], [setting]))
