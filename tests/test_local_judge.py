"""Qwen3.5 on this machine: a real processor, template and generate, on a tiny model of random weights."""

import json

import pytest
from test_judge import make_bench
from tiny_chat import save_tiny_chat
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judge import JudgeConfig, judge_edits, read_judge_set
from rvedit.evaluation.judges import qwen_judge
from rvedit.evaluation.protocols import PaperProtocol
from rvedit.evaluation.request import JudgeSettings
from rvedit.io.chat import Journal, Sampling


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One layer of linear attention and one of full, as the family has them."""
    text = {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3.5"
    return save_tiny_chat(folder, Qwen3_5Config, Qwen3_5ForConditionalGeneration, text, {})


def test_its_gibberish_is_dropped_and_not_scored(model, tmp_path):
    folder = make_bench(tmp_path, {"local_change": 2})
    config = JudgeConfig(folder / "edits", tmp_path / "out", folder / "bench.csv")
    journal = Journal(tmp_path / "journal.jsonl")
    protocol = PaperProtocol(FrameStore(tmp_path / "frames", journal))
    judge = qwen_judge(
        journal,
        protocol,
        JudgeSettings(Sampling(max_tokens=12, temperature=0.7, seed=0)),
        local=str(model),
        device="cpu",
    )
    report = judge_edits(config, read_judge_set(config, protocol), [judge])
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert (report.counts("qwen")["scored"], report.counts("qwen")["dropped"]) == (0, 2)
    assert report.tables["qwen"] is None
    for row in rows:
        assert row["dropped"].endswith("(asked 3 times)")
        assert row["reply"]
        assert row["model"].startswith("local:tiny-qwen3.5@")
        assert row["prompt_tokens"] > 10 * 4  # ten pictures of four tokens at least, and the rubric
    prompt, reply = report.tokens["qwen"]
    assert prompt == sum(3 * row["prompt_tokens"] for row in rows)
    assert reply > 0
