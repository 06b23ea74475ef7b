"""Qwen3.5 on this machine: a real processor, template and generate, on a tiny model of random weights."""

import json

import pytest
import torch
from test_caption import TEMPLATE
from test_judge import make_bench
from transformers import PreTrainedTokenizerFast, Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rvedit.chat import Journal, Sampling
from rvedit.judge.frames import FrameStore
from rvedit.judge.judges import qwen_judge
from rvedit.judge.protocols import PaperProtocol
from rvedit.judge.request import JudgeSettings
from rvedit.model.nano_tokenizer import train_tokenizer
from rvedit.workflows.judge import JudgeOrder, judge_edits, read_docket


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers, one of linear attention and one of full, as the family has them."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3.5"
    words = train_tokenizer(["you are a data rater", "instruction compliance: 85"], 300)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3_5Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
                                "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.5,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 16, "initializer_range": 0.5,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    ).save_pretrained(folder)
    return folder


def test_its_gibberish_is_dropped_and_not_scored(model, tmp_path):
    folder = make_bench(tmp_path, {"local_change": 2})
    order = JudgeOrder(folder / "edits", tmp_path / "out", folder / "bench.csv")
    journal = Journal(tmp_path / "journal.jsonl")
    protocol = PaperProtocol(FrameStore(tmp_path / "frames", journal))
    judge = qwen_judge(
        journal,
        protocol,
        JudgeSettings(Sampling(max_tokens=12, temperature=0.7, seed=0)),
        local=str(model),
        device="cpu",
    )
    report = judge_edits(order, read_docket(order, protocol), [judge])
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
