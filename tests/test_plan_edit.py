"""`rvedit edit --plan`: estimates without weights, against what real edits hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from conftest import edit, make_pipeline, random_clip
from safetensors.torch import save_file
from typer.testing import CliRunner

import rvedit.editing.memory_plan as plan_edit_module
from rvedit.editing.config import EditConfig
from rvedit.editing.memory_plan import EditPlanOptions, Planner, find_fitting_plan, plan_edit, suggest_options
from rvedit.editing.peak_memory import LiveBytes, peak_bytes
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.pipelines.checkpoints import load_checkpoint
from rvedit.pipelines.checkpoints.files import read_shapes
from rvedit.pipelines.checkpoints.outline import outline
from rvedit.pipelines.checkpoints.wan import original_config
from rvedit_cli.main import app

FP32 = EditPlanOptions(torch.float32)
REAL = ClipShape(81, 704, 1280)
KIWI = "linyq/kiwi-edit-5b-instruct-only-diffusers"


def save_wan(folder: Path, config: dict[str, Any]) -> None:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')


@pytest.fixture(scope="module")
def kiwi():
    """Kiwi-Edit at the real size: running it without storage takes a while, so once for all."""
    return Planner(REAL, KIWI)


def test_live_bytes_by_hand():
    """Two tensors of 4000 bytes at most: the third comes when the first has gone; a view is nothing new."""

    def work():
        a = torch.ones(1000)
        b = a + 1
        c = b.view(10, 100)
        del a
        return c * 2

    with LiveBytes() as live:
        work()
    assert live.peak == 8000
    assert live.now == 0


def test_fused_attention_holds_no_matrix():
    query = torch.empty(1, 2, 1000, 16, device="meta")
    peak = peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert peak == 4 * query.numel()


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("num_frames", "size"), [(9, 32), (9, 48), (5, 32)])
def test_the_estimate_is_what_an_edit_holds(tiny_tokenizer, tmp_path, num_frames, size, guidance):
    """Small, so that what hardly counts at the real size (masks, tables, words) counts here."""
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.save_pretrained(tmp_path / "tiny")
    pipeline = load_checkpoint(tmp_path / "tiny")
    plan = plan_edit(ClipShape(num_frames, size, size), str(tmp_path / "tiny"), FP32)
    assert plan.weights == {
        name: sum(p.numel() * 4 for p in getattr(pipeline, name).parameters()) for name in plan.weights
    }
    clip = random_clip(num_frames, size, size)
    with LiveBytes() as live:
        edit(pipeline, clip, "make the fish orange", EditConfig(2, guidance))
    estimate = max(stage.work for stage in plan.stages)
    assert 0.7 < estimate / live.peak < 1.3, (estimate, live.peak)


@pytest.mark.slow
def test_offloading_needs_less_and_the_published_model_fits_a_card(kiwi):
    peaks = [
        kiwi(EditPlanOptions(**options)).device_bytes
        for options in ({}, {"vae_tiling": True}, {"vae_tiling": True, "offload": "model"})
    ]
    assert peaks[0] > peaks[1] > peaks[2]
    assert 20e9 < peaks[1] < 32e9, "the weights alone are 20 GB"
    fits = find_fitting_plan(kiwi, EditPlanOptions(), 24e9)
    assert fits is not None
    assert fits.options.words == "--offload model --vae-tiling"
    assert find_fitting_plan(kiwi, EditPlanOptions(), 4e9) is None


@pytest.mark.parametrize(
    ("options", "room", "said"),
    [
        ({}, 24e9, "--offload model --vae-tiling would need 1"),
        ({}, 200e9, "--vae-tiling would need"),  # it did not fit, whatever was planned
        ({"offload": "group", "quantization": "nf4", "vae_tiling": True}, 24e9,
         "no options fit 24 GB"),
        ({}, 4e9, "no options fit 4 GB"),
    ],
)  # fmt: skip
def test_a_full_device_is_told_what_would_fit(monkeypatch, kiwi, options, room, said):
    monkeypatch.setattr(plan_edit_module, "Planner", lambda clip, model: kiwi)
    assert said in suggest_options(REAL, KIWI, EditPlanOptions(**options), room)


@pytest.mark.parametrize("model", ["lucy", "somebody/something"])
def test_a_full_device_is_told_something_where_no_plan_is_made(model):
    assert "try `offload` model" in suggest_options(REAL, model, EditPlanOptions(), 24e9)


def test_a_card_too_small_says_what_would_fit(tiny_tokenizer, tmp_path, monkeypatch):
    from rvedit.io.video import write_clip

    make_pipeline(tiny_tokenizer).save_pretrained(tmp_path / "tiny")
    write_clip(tmp_path / "in.mp4", random_clip(20, 32, 48), 12)
    monkeypatch.chdir(tmp_path)

    def place(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("rvedit.pipelines.memory.place", place)
    monkeypatch.setattr("rvedit.pipelines.memory.usable_bytes", lambda device: 1e9)
    result = CliRunner().invoke(app, ["edit", "in.mp4", "red", "--model", "tiny"])
    assert isinstance(result.exception, UserError)
    assert re.fullmatch(
        r"tiny: out of memory on cpu: (--[a-z-]+( [a-z0-9]+)? ?)+would need .* GB of 1",
        str(result.exception),
    )
    assert not list(tmp_path.glob("*edited*"))


def test_what_is_read_before_it_is_quantised_counts_on_the_host(kiwi):
    plain, small = (kiwi(EditPlanOptions(quantization=kind)) for kind in (None, "nf4"))
    assert small.device_bytes < plain.device_bytes - 8e9
    assert small.host_bytes == plain.host_bytes


def test_detail_transfer_decodes_twice_and_holds_frames_of_the_models_size(kiwi):
    plain, transferring = (kiwi(EditPlanOptions(reconstruct=r)) for r in (False, True))
    decoding = [next(s for s in plan.stages if s.name == "decoding") for plan in (plain, transferring)]
    assert decoding[1].flops == 2 * decoding[0].flops
    assert decoding[1].work == decoding[0].work
    assert transferring.host_bytes - plain.host_bytes == 2 * 3 * (81 + 12) * 704 * 1280
    assert transferring.device_bytes == plain.device_bytes, "the most is held while decoding, here too"
    assert transferring.seconds(1e14)[1] > plain.seconds(1e14)[1]


def test_the_routing_depth_decides_about_the_text_encoder():
    assert outline(KIWI).text_encoder is None
    assert outline("Wan-AI/Wan2.2-TI2V-5B-Diffusers").text_encoder is not None


def test_a_folders_own_config_counts_and_not_its_name(tmp_path):
    """A Wan of three layers in a folder of that name is no Kiwi-Edit; one of two transformers is refused."""
    folder = tmp_path / "kiwi-edit-5b"
    save_wan(folder, {**WAN22_5B_TRANSFORMER, "num_layers": 3, "routing_depth": None})
    planned = outline(str(folder))
    assert len(planned.transformer.blocks) == 3
    assert planned.transformer.config.routing_depth == 1
    assert planned.text_encoder is not None
    (folder / "transformer_2").mkdir()
    with pytest.raises(UserError, match="a Wan model with two transformers"):
        outline(str(folder))
    other = tmp_path / "wan2.1"
    save_wan(other, {**WAN22_5B_TRANSFORMER, "in_channels": 12, "out_channels": 12})
    with pytest.raises(UserError, match="latents of 12 channels: plans support"):
        outline(str(other))


def test_the_14b_is_planned():
    plan = plan_edit(ClipShape(81, 480, 832), "linyq/kiwi-edit-14b-instruct-only", EditPlanOptions())
    assert 28e9 < plan.weights["transformer"] < 30e9
    assert 0.4e9 < plan.weights["vae"] < 0.6e9
    half = plan_edit(ClipShape(81, 480, 832), KIWI, EditPlanOptions())
    assert plan.as_json()["step_flops"] > 8 * half.as_json()["step_flops"], (
        "2.8 x the weights, 4 x the tokens"
    )


def test_a_file_is_planned_by_its_shapes(tmp_path):
    model = foreign.make_wan_transformer()
    state = foreign.to_original_transformer(model.state_dict())
    save_file(state, tmp_path / "wan.safetensors")
    config = original_config(read_shapes([tmp_path / "wan.safetensors"]), tmp_path)
    assert config.items() <= {**model.config, "patch_size": (1, 2, 2)}.items()
    with pytest.raises(UserError, match="latents of 4 channels"):
        outline(str(tmp_path / "wan.safetensors"))


def test_the_vae_is_planned_in_the_precision_it_is_read_in():
    plan = plan_edit(ClipShape(5, 64, 64), "nano", EditPlanOptions(torch.bfloat16))
    assert plan.weights["vae"] == sum(4 * p.numel() for p in outline("nano").vae.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quantize", "int3"), "`quantization` int3: choose one of"),
        (("--offload", "foo"), "`offload` foo: choose one of"),
        (("--model", "runs/nme"), "runs/nme: no such folder"),
        (("--model", "./nme"), "./nme: no such folder"),
        (("--model", "."), "not a checkpoint: model_index.json is missing"),
        (("--model", "someone/something"), "its size is unknown"),
        (("--model", "lucy"), "plans support RVEDiT"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path, monkeypatch, options, said):
    from rvedit.io.video import write_clip

    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "in.mp4", random_clip(2, 32, 48), 12)
    result = CliRunner().invoke(app, ["edit", "in.mp4", "red", "--plan", *options])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


@pytest.mark.slow
def test_guidance_fetches_the_language_model_beside_the_transformer(kiwi):
    one, two = (kiwi(EditPlanOptions(offload="model", guidance=g)) for g in (1.0, 3.0))
    reading = next(stage for stage in two.stages if stage.name == "editing tokens")
    assert set(reading.modules) == {"mllm", "connector", "transformer"}
    assert two.device_bytes >= one.device_bytes


def test_the_command(tiny_tokenizer, tmp_path):
    make_pipeline(tiny_tokenizer).save_pretrained(tmp_path / "tiny")
    from rvedit.io.video import write_clip

    write_clip(tmp_path / "in.mp4", random_clip(20, 32, 48), 12)
    arguments = ["edit", str(tmp_path / "in.mp4"), "red", "--plan", "--model", str(tmp_path / "tiny")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["plan"]["windows"] == 4
    assert plan["seconds"][1] > plan["seconds"][0] > 0
    said = CliRunner().invoke(app, [*arguments, "--card", "1"]).stdout
    assert "a GPU of 1 GB: no option" in said
    assert "estimated time on a GPU of 100 TFLOP/s: " in said
    assert not list(tmp_path.glob("*_edited*"))
