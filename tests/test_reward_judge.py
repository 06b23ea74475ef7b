"""A reward model in VEFX-Reward's layout: a tiny random one of the real classes."""

import json
import os

import numpy as np
import pytest
import torch
from clips import write_clip
from safetensors.torch import load_file, save_file
from tiny_chat import save_tiny_chat
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from typer.testing import CliRunner

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judges import Case
from rvedit.evaluation.reward import RewardJudge, RewardProtocol, read_prompt
from rvedit.evaluation.reward_model import REWARD_TOKENS, RewardModel, frame_indices, ordinal_scores
from rvedit.io.bench import BenchItem
from rvedit.io.chat import Journal
from rvedit.io.errors import UserError
from rvedit_cli.main import app

PROMPT = 'Two videos. "{text_prompt}" IF: <|IF_reward|> RQ: <|RQ_reward|> EE: <|EE_reward|>'
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a reward model; its frames are small."""
    folder = tmp_path_factory.mktemp("models") / "tiny-reward"
    vision = {"deepstack_visual_indexes": [0]}
    save_tiny_chat(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {}, vision)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": list(REWARD_TOKENS)})
    tokenizer.save_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    Qwen3VLVideoProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 4 * 64 * 64}).save_pretrained(
        folder
    )
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    weights["rm_head.weight"] = torch.randn(3, 32) * 0.3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"num_classes": 4, "output_dim": 3, "use_ordinal": True, "reward_token": "special"}
    (folder / "vefx_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name in ("a", "a_edited", "b", "b_edited"):
        levels = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
        write_clip(folder / f"{name}.mp4", levels.repeat(16, 1).repeat(16, 2))
    rows = "local_add,add a dog,a.mp4\ncamera,zoom in,b.mp4\n"
    (folder / "bench.csv").write_text(f"edited_type,prompt,original_video\n{rows}")
    (folder / "prompt.txt").write_text(PROMPT)
    return folder


def test_expected_scores_of_an_ordinal_regression():
    logits = torch.tensor([[0.0, 0.0, 0.0], [50, 50, 50], [-50, 0, 0], [50, 0, -50]])
    assert ordinal_scores(logits).tolist() == pytest.approx([1 + 0.5 + 0.25 + 0.125, 4, 1, 1 + 1 + 0.5])


@pytest.mark.parametrize(
    ("num_frames", "rate", "count"),
    [(81, 15, 22), (300, 30, 40), (6, 12, 4), (3, 12, 2), (1, 12, 0), (10**5, 4, 768)],
)
def test_frames_that_the_model_sees(num_frames, rate, count):
    indices = frame_indices(num_frames, rate)
    assert len(indices) == count
    assert not count or (indices[0], indices[-1]) == (0, num_frames - 1)


def test_scores_are_read_at_the_reward_tokens(folder, clips):
    model = RewardModel(str(folder), PROMPT, "cpu")
    scores = model.score(clips / "a.mp4", clips / "a_edited.mp4", "add <|EE_reward|> a dog")
    assert list(scores) == ["IF", "RQ", "EE"]
    assert all(1 < score < 4 for score in scores.values())
    inputs = model._inputs([clips / "a.mp4", clips / "a_edited.mp4"], "add a dog")
    with torch.inference_mode():
        hidden = model._model.model(**inputs)[0][0]
    # Two pairs of frames for each clip, of 2 x 2 tokens, each with its time.
    ids = inputs["input_ids"][0]
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4]] * 2
    assert int((ids == model._model.config.video_token_id).sum()) == 2 * 2 * 4
    assert "<0.1 seconds>" in model._tokenizer.decode(ids)
    head = load_file(folder / "model.safetensors")["rm_head.weight"]
    expected = []
    for token in REWARD_TOKENS:
        (place,) = (ids == model._tokenizer.convert_tokens_to_ids(token)).nonzero()
        steps = torch.sigmoid(head @ hidden[place[0]])
        expected.append(1 + float(steps[0] + steps[0] * steps[1] + steps[0] * steps[1] * steps[2]))
    again = model.score(clips / "a.mp4", clips / "a_edited.mp4", "add a dog")
    assert list(again.values()) == pytest.approx(expected, abs=1e-3)


def test_the_command_judges_by_the_models_own_protocol(folder, clips, tmp_path):
    command = ["judge", str(clips), "--bench", str(clips / "bench.csv"), "--judge", "reward", "--json"]
    command += ["--local", str(folder), "--rubrics", str(clips / "prompt.txt"), "--out", str(tmp_path)]
    summary = json.loads(CliRunner().invoke(app, command).stdout)
    assert (summary["protocol"], summary["scale"]) == ("vefx", [1, 4])
    assert summary["axis_labels"]["cf"] == "Edit Exclusivity"
    assert summary["judges"]["reward"]["scored"] == 2, "also of categories that the paper does not have"
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    for row in rows:
        measures = row["measures"]
        assert row["scores"] == {"ic": measures["IF"], "cf": measures["EE"], "vq": measures["RQ"]}
        assert row["model"].startswith("local:tiny-reward@")
    assert json.loads(CliRunner().invoke(app, command).stdout)["judges"]["reward"]["from_cache"] == 2
    os.utime(folder / "model.safetensors")  # other weights
    assert json.loads(CliRunner().invoke(app, command).stdout)["judges"]["reward"]["from_cache"] == 0
    (clips / "prompt.txt").write_text(PROMPT.replace("Two", "Both"))
    assert json.loads(CliRunner().invoke(app, command).stdout)["judges"]["reward"]["from_cache"] == 0


def test_scores_of_another_revision_of_the_hub_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub/models--a--reward"
    journal = Journal(tmp_path / "journal.jsonl")
    judge = RewardJudge(journal, RewardProtocol(FrameStore(tmp_path / "frames", journal)), "a/reward", PROMPT)
    item = BenchItem(0, "c", "add a dog", None, "", tmp_path / "c.mp4")
    case = Case(item, "add", tmp_path / "c.mp4")
    seen = []
    for revision in ("one", "two"):
        (cached / "snapshots" / revision).mkdir(parents=True)
        (cached / "snapshots" / revision / "config.json").write_text("{}")
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs/main").write_text(revision)
        seen.append(judge.context(case))
    assert seen[0] != seen[1]


def test_its_scores_are_not_mixed_with_those_of_other_protocols(folder, clips):
    command = ["judge", str(clips), "--judge", "reward", "--local", str(folder)]
    for more, says in (
        (["--judge", "qwen"], "a protocol of its own"),
        (["--protocol", "openve"], "a protocol of its own"),
        ([], "needs --rubrics FILE"),
    ):
        refused = CliRunner().invoke(app, [*command, *more])
        assert isinstance(refused.exception, UserError)
        assert says in str(refused.exception)


def test_other_models_are_refused(folder, tmp_path):
    import shutil

    plain = shutil.copytree(folder, tmp_path / "plain")
    weights = load_file(plain / "model.safetensors")
    del weights["rm_head.weight"]
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no rm_head"):
        RewardModel(str(plain), PROMPT, "cpu")
    (plain / "vefx_config.json").write_text("{")
    with pytest.raises(UserError, match=r"vefx_config\.json: is no JSON object"):
        RewardModel(str(plain), PROMPT, "cpu")
    (plain / "vefx_config.json").write_text('{"reward_token": "last"}')
    with pytest.raises(UserError, match="has no reward tokens"):
        RewardModel(str(plain), PROMPT, "cpu")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        RewardModel(str(pickled), PROMPT, "cpu")


def test_the_prompt_is_read_from_python_without_running_it(tmp_path):
    script = tmp_path / "prompt_template.py"
    script.write_text(f'"""Templates."""\nraise SystemExit\nT = """{PROMPT}"""\n')
    assert read_prompt(script) == PROMPT
    (tmp_path / "p.txt").write_text(PROMPT.replace("<|RQ_reward|>", ""))
    with pytest.raises(UserError, match="RQ_reward"):
        read_prompt(tmp_path / "p.txt")


def test_a_still_is_dropped(folder, clips, tmp_path):
    write_clip(tmp_path / "still.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    model = RewardModel(str(folder), PROMPT, "cpu")
    with pytest.raises(UserError, match="single frame"):
        model.score(clips / "a.mp4", tmp_path / "still.mp4", "add a dog")
