"""`rvedit analyze`, as users meet it, on nano and on a small world; and the paper's rows."""

import copy
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, make_transformer, random_clip
from PIL import Image
from processes import rvedit
from test_cli import PARK, ROOT, decoded
from tokenizers.processors import TemplateProcessing

from rvedit.analysis import trace_page
from rvedit.analysis.attention import AttentionConfig, AttentionReport, ModelAttention
from rvedit.analysis.concepts import check_concept_blocks, concept_shares, concept_tokens, concept_values
from rvedit.analysis.experiments import GROUPS, compare_branches, measure_attention
from rvedit.analysis.gallery_figure import GalleryItem, plot_gallery
from rvedit.analysis.observe import observed_outputs, observed_traces
from rvedit.analysis.paper import CATEGORIES, MEAN, notes, read_paper
from rvedit.analysis.reasoning import (
    CONCEPT,
    EDITING,
    PADDING,
    TOKEN,
    VISUAL,
    BlockMaps,
    ReasoningTrace,
    trace_edit,
    word_tokens,
)
from rvedit.analysis.sheets import to_csv, to_latex, to_markdown
from rvedit.analysis.table_rows import OVERALL, Contrast, result_rows
from rvedit.analysis.tables import TablesConfig, analyze_tables
from rvedit.analysis.trace import TraceConfig, analyze_trace
from rvedit.editing.config import EditConfig
from rvedit.evaluation.aggregate import Estimate, pooled
from rvedit.evaluation.scores import Scores
from rvedit.evaluation.statistics import Difference
from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint

RECIPES = ROOT / "recipes"
WORDS = "replace the dog with a corgi"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Ten held-out triplets and two folders of their edits, judged: the true edits, and the sources."""
    folder = tmp_path_factory.mktemp("world")
    made = ("--count", 10, "--num-frames", 5, "--split", "test", "--seed", 5, "--height", 64, "--width", 64)
    rvedit("prepare", "playground", "--out", "triplets", *made, cwd=folder, check=0)
    rows = [json.loads(line) for line in (folder / "triplets/manifest.jsonl").read_text().splitlines()]
    for name, side in (("good", "target"), ("bad", "source")):
        (folder / name).mkdir()
        for row in rows:
            clip = (folder / "triplets" / row[side]).read_bytes()
            (folder / name / f"{row['id']}_edited.mp4").write_bytes(clip)
        rvedit("judge", name, "--bench", "triplets", "--judge", "reference", cwd=folder, check=0)
    shutil.copytree(folder / "bad", folder / "copy")
    return folder


# Attention.


@pytest.mark.slow
def test_attention_of_nano_is_fig_4(world, tmp_path):
    done = rvedit(
        "analyze", "attention", world / "triplets", "--limit", 2, "--steps", 2, "--times", 2,
        "--base", "first=nano", "--out", "found", "--json", cwd=tmp_path, check=0,
    )  # fmt: skip
    report = json.loads(done.stdout)
    model, base = report["models"]
    assert (model["model"], base["model"]) == ("nano", "first")
    assert model["by_block"] == base["by_block"], "the same weights"
    (apart,) = report["differences"]
    assert all(e == {"value": 0, "low": 0, "high": 0} for es in apart["by_block"].values() for e in es)
    assert (model["blocks"], model["routing_depth"], model["steps"]) == (8, 4, 2)
    assert (model["clips"], model["compared_clips"]) == (2, 2)
    found = model["by_block"]
    edit, *others = ([e["value"] for e in found[f"mass {name}"]] for name in GROUPS)
    assert edit[:4] == [1] * 4
    assert not any(value for group in others for value in group[:4])
    assert min(value for group in others for value in group[4:]) > 0
    np.testing.assert_allclose(np.sum([edit, *others], axis=0), 1, atol=1e-6)
    for name in ("entropy", "cosine", "js", "spread"):
        lowest = -1 if name == "cosine" else 0
        assert all(lowest < e["low"] <= e["value"] <= e["high"] < 1 for e in found[name])
    assert all(0 < e["value"] < 1.5 for e in found["alignment"])  # of ln S
    lines = list(csv.DictReader((tmp_path / "found/attention.csv").open()))
    lines = [line for line in lines if line["model"] == "nano"]
    assert len(lines) == 9 * 8 * 2  # quantities, blocks, clips
    mean = np.mean([float(x["value"]) for x in lines if (x["quantity"], x["block"]) == ("cosine", "8")])
    assert mean == pytest.approx(found["cosine"][7]["value"], abs=1e-4)
    assert Image.open(tmp_path / "found/attention.png").size[0] > 1000
    assert "<svg" in (tmp_path / "found/attention.svg").read_text()[:1000]


def test_reading_an_edit_is_the_edit(tiny_tokenizer):
    """What is looked at is the very edit that the pipeline makes; steps and blocks are told apart."""
    pipeline = make_pipeline(tiny_tokenizer)
    clip, settings = random_clip(9), EditConfig(num_inference_steps=3, guidance_scale=1.0, detail=0)
    expected = edit(pipeline, clip, WORDS, settings)
    reading = measure_attention(pipeline, clip, WORDS, settings)
    assert reading.mass.shape == (3, 4, 4)
    assert reading.positions == 3 * 2 * 2
    assert (reading.mass[:, :2] == [1, 0, 0, 0]).all()
    assert np.ptp(reading.entropy, axis=0).min() > 0
    trace = trace_edit(pipeline, clip, WORDS, settings, blocks=(2, 3), steps=(1, 3))
    assert np.array_equal(trace.edit, expected)
    # Blocks that read the editing tokens alone show those one by one: together they have everything.
    assert set(trace.readings[0].maps) <= {TOKEN.format(n) for n in range(1, 7)}
    assert [(x.step, x.block) for x in trace.readings] == [(1, 2), (1, 3), (3, 2), (3, 3)]
    deep = trace.readings[1]
    assert deep.maps[VISUAL].shape == (3, 2, 2)
    # Mass and maps are two views of one attention.
    assert deep.maps[EDITING].mean() == pytest.approx(reading.mass[0, 2, 0], abs=1e-5)
    assert sum(deep.maps[word].mean() for word in trace.words) == pytest.approx(
        reading.mass[0, 2, 2], abs=1e-5
    )
    assert deep.maps[PADDING].mean() == pytest.approx(reading.mass[0, 2, 3], abs=1e-5)
    words = sum(deep.maps[word] for word in (*trace.words, PADDING))
    np.testing.assert_allclose(words + deep.maps[EDITING] + deep.maps[VISUAL], 1, atol=1e-5)


def test_branches_that_see_the_same_have_the_same_trace(tiny_tokenizer):
    pipeline = make_pipeline(tiny_tokenizer)
    clip, other = random_clip(5), random_clip(5, seed=1)
    same = clip, WORDS
    for row in compare_branches(pipeline, same, same, num_times=2, seed=0, temperature=0.07):
        assert len(row) == 4
        assert all(x.cosine == pytest.approx(1, abs=1e-5) and x.js < 1e-6 for x in row)
    apart = compare_branches(pipeline, same, (other, "a corgi"), 2, 0, 0.07)
    assert all(x.cosine < 1 - 1e-4 and x.js > 0 for row in apart for x in row)


def test_models_are_compared_clip_by_clip():
    """Clips differ by far more than the models do: only pairs can tell."""
    easy_and_hard = np.array([[0.1], [0.5], [0.9]])
    models = [
        ModelAttention(name, 4, 1, 12, 192, ("a", "b", "c"), (), {"entropy": easy_and_hard + more})
        for name, more in (("trained", 0.01), ("first stage", 0.0))
    ]
    (apart,) = models[0].estimates("entropy", baseline=models[1])
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.01, 0.01, 0.01))
    (alone,) = models[0].estimates("entropy")
    assert alone.low < 0.4 < 0.6 < alone.high
    report = AttentionReport(AttentionConfig((), Path()), tuple(models), 0.0).as_json()
    assert report["differences"][0]["by_block"]["entropy"][0]["low"] == pytest.approx(0.01)


def test_attention_refuses_clips_without_words(tmp_path):
    done = rvedit("analyze", "attention", PARK, "--out", "found", cwd=tmp_path, check=2)
    assert "give --instruction" in done.stderr
    assert not (tmp_path / "found").exists()


# Trace.


def test_trace_writes_a_page_and_a_clip(tmp_path):
    arguments = ("analyze", "trace", PARK, WORDS, "--steps", 3, "--blocks", "1,8", "--at-steps", "2")
    done = rvedit(*arguments, "--json", cwd=tmp_path, check=0)
    report = json.loads(done.stdout)
    assert (report["blocks"], report["steps"], report["frames"]) == ([1, 8], [2], 21)
    page = (tmp_path / "park_trace/trace.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?http", page)
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])
    assert list(data["readings"]) == ["1/2", "8/2"]
    shallow, deep = ({m["name"]: m for m in data["readings"][key]} for key in ("1/2", "8/2"))
    assert all(name.startswith("editing token ") for name in shallow)
    assert {"dog", "corgi", VISUAL, EDITING} <= set(deep)
    assert deep["dog"]["shape"] == [6, 8, 8]
    assert len(data["edit"]) == len(data["source"]) == 6
    assert "oncept" not in "".join((data["about"], *deep)), "nobody asked for them"
    times, frames = decoded(tmp_path / "park_trace/trace.mp4")
    assert len(frames) == 21
    assert times == pytest.approx([i / 12 for i in range(21)], abs=1e-3)
    again = rvedit(*arguments, cwd=tmp_path, check=2)
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--blocks", "9", "from 1 to 8"),
        ("--at-steps", "0", "from 1 to 2"),
        ("--blocks", "two", "such as 1,4,8"),
    ],
)
def test_trace_refuses_blocks_that_are_not_there(tmp_path, option, value, said):
    done = rvedit("analyze", "trace", PARK, WORDS, option, value, cwd=tmp_path, check=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_words_are_found_in_the_text_tokens():
    pipeline = load_checkpoint(find_checkpoint("nano"), torch.float32)
    words = word_tokens(pipeline, "Replace the dog with the aardvark.")
    assert list(words) == ["Replace", "the", "dog", "with", "the (2)", "aardvark."]
    ids = pipeline.tokenizer("Replace the dog with the aardvark.").input_ids
    positions = [position for places in words.values() for position in places]
    assert positions == list(range(len(positions)))
    assert pipeline.tokenizer.decode([ids[i] for i in words["dog"]]).strip() == "dog"
    assert pipeline.tokenizer.decode([ids[i] for i in words["aardvark."]]).strip() == "aardvark"


@pytest.mark.slow
def test_trace_of_a_still_and_of_words_that_look_like_ours(tmp_path):
    """A clip of one frame; a word said twice, a number, and more words than nano's 32 tokens."""
    Image.fromarray(random_clip(1, 96, 96)[0]).save(tmp_path / "still.png")
    words = "replace the token with a token and 3 balls " + "very " * 40 + "red"
    rvedit("analyze", "trace", "still.png", words, "--steps", 1, cwd=tmp_path, check=0)
    assert len(decoded(tmp_path / "still_trace/trace.mp4")[1]) == 1
    with av.open(str(tmp_path / "short.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for frame in random_clip(6, 96, 96):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    done = rvedit(
        "analyze", "trace", "short.mp4", words, "--steps", 1, "--blocks", 8, "--json", cwd=tmp_path, check=0
    )
    assert json.loads(done.stdout)["frames"] == 6  # not the 9 that the model was given
    page = (tmp_path / "short_trace/trace.html").read_text()
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])
    assert data["frames"] == [1, 5, 6]
    assert "The text encoder did not read: very" in data["about"]
    names = [m["name"] for m in data["readings"]["8/1"]]
    assert {"token", "token (2)", "3"} <= set(names)
    assert len(decoded(tmp_path / "short_trace/trace.mp4")[1]) == 6


def test_what_can_be_refused_is_refused_before_weights_are_read(world, tmp_path):
    """Also a base that is not there, before the model is measured."""
    lists = world / "triplets"
    for words, said in (
        (("trace", PARK, " "), "the instruction is empty"),
        (("trace", PARK, WORDS, "--concepts", "dog,,sky"), "--concepts: one is empty"),
        (("trace", PARK, WORDS, "--concepts", ""), "--concepts: one is empty"),
        (("trace", PARK, WORDS, "--concepts", "dog, sky,dog "), "--concepts: dog is given twice"),
        (("trace", PARK, WORDS, "--concepts", "dog"), "--concepts dog: concepts compete"),
        (("trace", PARK, WORDS, "--model", "lucy"), "only RVEDiT models can be analyzed"),
        (("attention", lists, "--out", "x", "--base", "no/where/at/all"), "--base no/where/at/all"),
        (("attention", lists, "--out", "x", "--base", "nano"), "name them with NAME=DIR"),
        (("attention", tmp_path / "gone.mp4", "--instruction", WORDS, "--out", "x"), "no such clip"),
    ):
        done = rvedit("analyze", *words, cwd=tmp_path, check=2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr


# Concepts.


def test_shares_of_concepts_by_hand():
    """Two heads of width 4: the logits are 2 cos, whatever the lengths of the vectors are."""
    one, two, other = ([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0])
    values = torch.tensor([[one, one], [two, two]]) * 3
    output = torch.tensor([[one, other], [[1.0, 1, 0, 0], one]]) * 0.01
    output[1, 1] *= -1
    for_one, against_one = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    expected = np.array([(for_one + 0.5) / 2, (0.5 + against_one) / 2])
    np.testing.assert_allclose(
        concept_shares(output, values), np.stack([expected, 1 - expected], 1), atol=1e-6
    )


def test_concepts_change_neither_the_edit_nor_the_other_maps(tiny_tokenizer):
    pipeline = make_pipeline(tiny_tokenizer)
    clip, settings = random_clip(9), EditConfig(num_inference_steps=3, guidance_scale=1.0, detail=0)
    arguments = (pipeline, clip, WORDS, settings, (2, 3, 4), (1, 3))
    concepts = ("fish", "red car", "sky")
    plain, observed = trace_edit(*arguments), trace_edit(*arguments, concepts=concepts)
    assert np.array_equal(plain.edit, observed.edit)
    names = {CONCEPT.format(concept) for concept in concepts}
    assert set(observed.concepts) == names
    assert plain.concepts == ()
    for without, reading in zip(plain.readings, observed.readings, strict=True):
        assert set(reading.maps) - set(without.maps) == (names if reading.block > 2 else set())
        assert all(np.array_equal(reading.maps[name], without.maps[name]) for name in without.maps)
        if reading.block > 2:
            assert all(reading.maps[name].shape == (3, 2, 2) for name in names)
            np.testing.assert_allclose(sum(reading.maps[name] for name in names), 1, atol=1e-6)
            assert min(reading.maps[name].std() for name in names) > 0
    first, last = observed.readings[1], observed.readings[-1]
    assert (first.block, first.step, last.block, last.step) == (3, 1, 4, 3)
    assert not np.allclose(first.maps['"sky" (concept)'], last.maps['"sky" (concept)'])
    assert not any(block.attn2.to_out[0]._forward_pre_hooks for block in pipeline.transformer.blocks)


def test_observed_outputs_are_the_trace_before_its_projection():
    torch.manual_seed(3)
    model = make_transformer()
    groups = model.embed_tokens(torch.randn(1, 5, 64), torch.randn(1, 8, 2, 3, 4), torch.randn(1, 6, 32))
    outputs, traces = {}, {}
    with (
        torch.no_grad(),
        observed_outputs(model, lambda block, output: outputs.update({block: output})),
        observed_traces(model, lambda block, trace: traces.update({block: trace})),
    ):
        model(torch.randn(1, 8, 2, 3, 4), torch.tensor([500.0]), groups)
        assert list(outputs) == [1, 2, 3, 4]
        assert outputs[3].shape == (1, 24, 4, 16)
        torch.testing.assert_close(model.blocks[2].attn2.to_out[0](outputs[3].flatten(2)), traces[3])
        # A concept's value is the mean over its tokens of those that the attention would have.
        tokens = [groups.text_tokens[0, :2], groups.text_tokens[0, 2:3]]
        values = concept_values(model.blocks[2].attn2, tokens)
        expected = model.blocks[2].attn2.to_v(groups.text_tokens[0]).unflatten(-1, (4, 16))
        torch.testing.assert_close(values, torch.stack([expected[:2].mean(0), expected[2]]))


def test_the_tokens_of_a_concept_are_its_own(tiny_tokenizer):
    """Neither padding nor the token that ends a text, and as if it were encoded alone."""
    pipeline = make_pipeline(tiny_tokenizer)
    dog, car = concept_tokens(pipeline, ("dog", "a red car"))
    assert (len(dog), len(car)) == tuple(len(tiny_tokenizer(text).input_ids) for text in ("dog", "a red car"))
    torch.testing.assert_close(concept_tokens(pipeline, ("a red car",))[0], car)
    with pytest.raises(UserError, match="the text encoder has no token for it"):
        concept_tokens(pipeline, ("dog", "?"))
    end = "<|im_end|>"
    ended = copy.deepcopy(tiny_tokenizer)
    ended.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ended.convert_tokens_to_ids(end))]
    )
    assert ended("dog").input_ids[-1] == ended.convert_tokens_to_ids(end)
    pipeline.tokenizer = ended
    assert len(concept_tokens(pipeline, ("dog",))[0]) == len(dog)


def test_concepts_need_blocks_that_read_text(tiny_tokenizer, tmp_path):
    pipeline = make_pipeline(tiny_tokenizer)
    concepts = ("dog", "sky")
    shallow = TraceConfig(PARK, WORDS, tmp_path / "out", blocks=(1, 2), concepts=concepts)
    with pytest.raises(UserError, match=r"^`concepts`: blocks up to 2 do not read text: add one of 3 to 4"):
        analyze_trace(shallow, pipeline, "tiny")
    pipeline.transformer = make_transformer(routing_depth=4)
    with pytest.raises(UserError, match=r"^`concepts`: none of this model's 4 blocks reads text"):
        analyze_trace(replace(shallow, blocks=()), pipeline, "tiny")
    assert not (tmp_path / "out").exists()
    check_concept_blocks((2, 3), num_blocks=4, routing_depth=2)


def test_concepts_on_the_page_and_in_the_clip(tmp_path):
    options = ("--steps", 1, "--blocks", "4,8", "--concepts", " red ball ,sky", "--out", "out")
    rvedit("analyze", "trace", PARK, WORDS, *options, cwd=tmp_path, check=0)
    page = (tmp_path / "out/trace.html").read_text()
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])
    shallow, deep = ({m["name"]: m for m in data["readings"][key]} for key in ("4/1", "8/1"))
    concepts = {'"red ball" (concept)', '"sky" (concept)'}
    assert concepts <= set(deep)
    assert not concepts & set(shallow)
    assert {"dog", VISUAL} <= set(deep)
    assert "sum to 100% over the concepts" in data["about"]
    ball, sky = (deep[name] for name in sorted(concepts))
    assert 0 < ball["low"] < ball["high"] < 1
    assert ball["low"] + sky["high"] == pytest.approx(1)  # two concepts: one has what the other has not
    assert len(decoded(tmp_path / "out/trace.mp4")[1]) == 21


def test_the_clip_leaves_out_words_before_concepts(monkeypatch):
    """Concepts are flatter than any word, and there is no place for all words."""
    clip, rng = random_clip(1), np.random.default_rng(0)
    words = {f"word{i}": rng.random((1, 2, 2), np.float32) for i in range(30)}
    concepts = {CONCEPT.format(name): np.full((1, 2, 2), 0.5, np.float32) for name in ("dog", "sky")}
    maps = (BlockMaps(3, 1, words | concepts),)
    trace = ReasoningTrace(WORDS, clip, clip, tuple(words), maps, 1, 4, 2, tuple(concepts))
    captions = []
    monkeypatch.setattr(trace_page, "tiled", lambda frames, *_, **__: captions.extend(x for x, _ in frames))
    list(trace_page.overlay_frames(trace))
    shown = [caption for caption in captions if caption not in ("source", "edit")]
    assert len(shown) == trace_page.MAX_MAPS
    assert sum("(concept)" in caption for caption in shown) == 2


# Tables.


def test_the_papers_rows_and_what_it_says_twice():
    two, three = (read_paper(RECIPES, table) for table in "23")
    assert [entry.label for entry in two][:4] == [
        "RVEDiT", "w/o both", "w/o GRTC (L_s = L)", "w/o RAAA (lambda = 0)",
    ]  # fmt: skip
    assert len(two) == len(three) == 9
    assert two[0].cells["qwen"]["overall", "score"] == 77.42
    one = {entry.label: entry.cells for entry in read_paper(RECIPES, "1")}
    both = [one["RVEDiT"][judge]["overall", "score"] for judge in ("gemini", "qwen")]
    assert np.mean(both) == pytest.approx(69.95, abs=0.005)
    overall = ("71.71 in Table 2, and 71.77", "L_s = 25: Overall is 69.83 in Table 2, and 69.86")
    for said in (*overall, "differ by more than rounding"):
        assert any(said in note for note in notes("2", RECIPES)), said
    assert any("ten configurations; there are nine" in note for note in notes("3", RECIPES))


def test_tables_of_judged_folders(world, tmp_path):
    runs = (f"RVEDiT={world / 'good'}", f"w/o both={world / 'bad'}", f"mine={world / 'copy'}")
    done = rvedit(
        "analyze", "tables", *runs, "--table", 2, "--recipes", RECIPES, "--out", "t", cwd=tmp_path, check=0
    )
    assert "w/o both" in done.stdout
    report = json.loads((tmp_path / "t/table2.json").read_text())
    rows = {row["label"]: row for row in report["rows"]}
    assert len(rows) == 10
    assert report["judge"] == "reference"
    assert rows["RVEDiT"]["ours"]["overall.score"]["value"] > 90
    assert rows["w/o both"]["less_full"]["paper"] == pytest.approx(71.71 - 77.42)
    assert rows["w/o both"]["less_full"]["cells"]["overall.score"]["mean"]["value"] < -20
    assert rows["mine"]["less_full"]["verdict"] == "not in the paper"
    assert rows["L_s = 8"]["ours"] == {}
    lines = list(csv.DictReader((tmp_path / "t/table2.csv").open()))
    (cell,) = [x for x in lines if (x["label"], x["category"], x["axis"]) == ("w/o both", "overall", "score")]
    assert float(cell["ours_less_paper"]) == pytest.approx(float(cell["ours"]) - 71.71, abs=1e-3)
    latex = (tmp_path / "t/table2.tex").read_text()
    assert r"$\lambda$ = 0.25" in latex
    assert latex.count(r"\\") == 11
    three = rvedit("analyze", "tables", runs[0], "--table", 3, "--recipes", RECIPES, cwd=tmp_path, check=0)
    assert "/ 78.71" in three.stdout
    one = rvedit("analyze", "tables", runs[0], "--table", 1, "--recipes", RECIPES, cwd=tmp_path, check=0)
    assert "Kiwi-Edit" in one.stdout


def test_the_mean_of_two_judges(world, tmp_path):
    """Of every item, and beside the mean of the paper's two; what one judge alone scored does not count."""
    verdicts = [json.loads(line) for line in (world / "good/judge/scores.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (world / "bad/judge/scores.jsonl").read_text().splitlines()]
    (tmp_path / "both").mkdir()
    lines = [*verdicts, *({**row, "judge": "other"} for row in others[1:])]
    (tmp_path / "both/scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    config = TablesConfig((f"RVEDiT={tmp_path / 'both'}",), "1", RECIPES, MEAN)
    report = analyze_tables(config)
    alone = [analyze_tables(replace(config, judge=judge)) for judge in ("reference", "other")]
    row, *each = (next(r for r in found.rows if r.label == "RVEDiT") for found in (report, *alone))
    assert report.judge == MEAN
    assert row.items == each[1].items == each[0].items - 1
    assert row.paper[OVERALL] == pytest.approx(69.95, abs=0.005)
    means = {v["item"]: [] for v in others[1:]}
    for verdict in lines:
        if verdict["item"] in means:
            means[verdict["item"]].append(np.mean(list(verdict["scores"].values())))
    category = others[1]["category"]
    expected = np.mean([np.mean(means[v["item"]]) for v in others[1:] if v["category"] == category])
    assert row.ours[category, "score"].value == pytest.approx(expected)
    with pytest.raises(UserError, match="needs two judges"):
        analyze_tables(replace(config, runs=(f"RVEDiT={world / 'good'}",)))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["nowhere"], "no such folder"),
        (["{world}/good"], "write LABEL="),
        (["RVEDiT={world}/triplets"], "run `rvedit judge` on it first"),
        (["RVEDiT={world}/good", "--judge", "qwen"], "not judged by --judge qwen: choose among reference"),
        (["RVEDiT={world}/good", "--recipes", "nothing"], "--recipes"),
        (["RVEDiT={world}/good", "x={world}/good"], "is given twice"),
        (["RVEDiT={world}/good", "--full", "typo"], "--full typo"),
    ],
)
def test_tables_say_what_is_wrong(world, tmp_path, runs, said):
    runs = [text.format(world=world) for text in runs]
    recipes = () if "--recipes" in runs else ("--recipes", RECIPES)
    done = rvedit("analyze", "tables", *runs, "--table", 2, *recipes, cwd=tmp_path, check=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_names_its_row_by_its_recipe(world, tmp_path):
    run, edits = tmp_path / "runs/x", tmp_path / "edits"
    run.mkdir(parents=True)
    edits.mkdir()
    (run / "recipe.yaml").write_text("paper: {label: L_s = 8}\n")
    (edits / "settings.json").write_text(json.dumps({"model": str(run)}))
    (edits / "scores.jsonl").write_bytes((world / "bad/judge/scores.jsonl").read_bytes())
    report = analyze_tables(TablesConfig((f"RVEDiT={world / 'good'}", str(edits)), "2", RECIPES))
    assert {row.label for row in report.rows if row.ours} == {"RVEDiT", "L_s = 8"}


def score_items(level, count=30, seed=0):
    """Scores about a level, of items whose difficulty is the same whatever the level."""
    difficulty = np.random.default_rng(7).normal(0, 15, count)
    noise = np.random.default_rng(seed).normal(0, 1, count)
    values = level + difficulty + noise
    return {name: {str(i): [Scores(v, v, v)] for i, v in enumerate(values)} for name in CATEGORIES}


def test_contrasts_are_paired_corrected_and_want_all_seeds():
    full = [score_items(60, seed=s) for s in (1, 2)]
    judged = {
        "RVEDiT": full,
        "w/o both": [score_items(57, seed=s) for s in (3, 4)],  # below, in both seeds
        "L_s = 8": [score_items(57, seed=5), score_items(60.5, seed=6)],  # below in one alone
        "lambda = 0.25": [score_items(60, seed=s) for s in (8, 9)],
    }
    rows = {row.label: row for row in result_rows(read_paper(RECIPES, "2"), judged, "reference", "RVEDiT")}
    told = rows["w/o both"].contrast
    assert told.verdict == "holds"
    # Items differ by 15, the pairs by 1: an unpaired test would see nothing.
    assert told.overall.mean.value == pytest.approx(-3, abs=0.6)
    assert told.overall.mean.high - told.overall.mean.low < 1.5
    assert len(told.by_seed) == 2
    assert rows["L_s = 8"].contrast.verdict == "not significant"
    assert rows["lambda = 0.25"].contrast.verdict == "not significant"
    assert rows["lambda = 1.00"].contrast is None
    assert rows["RVEDiT"].ours["overall", "score"].value == pytest.approx(
        np.mean([s.mean for run in full for items in run["change"].values() for s in items])
    )


def test_verdicts():
    difference = Difference(30, 0, 0, Estimate(-3, -4, -2), 0.001)
    below = Contrast({OVERALL: difference}, 0.001, (-3.1, -2.9, -3), -5.0)
    assert below.verdict == "holds"
    assert below.seed_interval == pytest.approx((-3 - 0.2484, -3 + 0.2484), abs=1e-3)  # 4.3027 x 0.1 / sqrt 3
    assert replace(below, by_seed=()).verdict == "holds (one training)"
    assert replace(below, by_seed=(), trainings=(3, 2)).verdict == "holds (unpaired trainings)"
    assert replace(below, paper=5.0).verdict == "opposite sign"
    assert replace(below, paper=None).verdict == "not in the paper"
    assert replace(below, p_value=0.06).verdict == "not significant"
    assert replace(below, by_seed=(-6.5, 0.5)).verdict == "not significant"


def test_pooled_runs_count_items_once():
    first, second = score_items(10), score_items(20)
    first["change"]["0"] *= 3  # judged three times
    del second["change"]["1"]
    merged = pooled([first, second])
    assert {len(repeats) for repeats in merged["change"].values()} == {2}
    assert len(merged["change"]) == 29


def test_a_run_without_a_category_has_no_overall():
    partial = {name: items for name, items in score_items(50).items() if name != "style"}
    judged = {"RVEDiT": [score_items(60)], "L_s = 8": [partial]}
    rows = result_rows(read_paper(RECIPES, "2"), judged, "reference", "RVEDiT")
    row = next(row for row in rows if row.label == "L_s = 8")
    assert ("change", "score") in row.ours
    assert OVERALL not in row.ours
    assert row.contrast is None
    nothing_shared = {name: {f"x{i}": s for i, s in items.items()} for name, items in score_items(50).items()}
    judged = {"RVEDiT": [score_items(60)], "L_s = 8": [nothing_shared]}
    rows = result_rows(read_paper(RECIPES, "2"), judged, "reference", "RVEDiT")
    assert all(row.contrast is None for row in rows)


def test_other_names_of_a_row_are_that_row():
    judged = {"lambda = 0.75": [score_items(60)], "L_s = 22": [score_items(50)]}
    rows = result_rows(read_paper(RECIPES, "2"), judged, "reference", "RVEDiT")
    assert {row.label for row in rows if row.ours} == {"RVEDiT", "L_s = 25"}
    assert len(rows) == 9
    rows = result_rows(read_paper(RECIPES, "2"), judged, "reference", "L_s = 22")
    assert [row.label for row in rows if row.contrast] == ["RVEDiT"]


# Gallery.


@pytest.mark.slow
def test_gallery_shows_methods_by_category(world, tmp_path):
    done = rvedit(
        "analyze", "gallery", f"true={world / 'good'}", f"copy={world / 'bad'}", "--bench",
        world / "triplets", "--out", "g", "--frames", 3, "--json", cwd=tmp_path, check=0,
    )  # fmt: skip
    report = json.loads(done.stdout)
    figures = [Path(path) for path in report["figures"]]
    assert {path.suffix for path in figures} == {".png", ".pdf"}
    assert all((tmp_path / path).stat().st_size > 5000 for path in figures)
    assert report["items"] == len(report["clips"]) > 1
    _, frames = decoded(tmp_path / report["clips"][0])
    assert frames.shape == (5, 344, 4 * 320, 3)
    # The second tile is the true edit as the method gave it, the last one as the list has it.
    tiles = np.split(frames[0][24:].astype(int), 4, axis=1)
    assert np.abs(tiles[1] - tiles[3]).mean() < 1
    assert np.abs(tiles[0] - tiles[2]).mean() < 1
    assert np.abs(tiles[0] - tiles[1]).mean() > 1


def test_long_instructions_are_wrapped_and_dollars_stay(world, tmp_path):
    """The picture is as wide as without them."""
    (clip,) = list((world / "good").glob("*_edited.mp4"))[:1]
    sizes = []
    for words in ("short", "paint the price tag from $5 to $10 and " * 12):
        plot_gallery([GalleryItem("0", words, {"a $b": clip})], tmp_path / "g", 3, "t")
        sizes.append(Image.open(tmp_path / "g.png").size)
    assert sizes[0][0] == pytest.approx(sizes[1][0], rel=0.01)
    assert sizes[1][1] > sizes[0][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "no such folder"),
        (("{world}/good", "{world}/good"), "two folders are named good"),
        (("{world}/good", "--item", "x"), "--item x: no such item"),
        (("empty={world}/triplets", "{world}/good"), "no item was edited by all of"),
    ],
)
def test_gallery_says_what_is_wrong(world, tmp_path, arguments, said):
    arguments = [text.format(world=world) for text in arguments]
    bench = ("--bench", world / "triplets")
    done = rvedit("analyze", "gallery", *arguments, *bench, "--out", "g", cwd=tmp_path, check=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_row_that_others_are_compared_with(world):
    """By any of its names; where there is none, that is said."""
    runs = (f"L_s = 22={world / 'good'}", f"mine={world / 'bad'}")
    report = analyze_tables(TablesConfig(runs, "2", RECIPES, full="L_s = 22"))
    assert {row.label for row in report.rows if row.contrast} == {"mine"}
    report = analyze_tables(TablesConfig(runs, "3", RECIPES, full="L_s = 25"))
    assert {row.label for row in report.rows if row.contrast} == {"mine"}
    report = analyze_tables(TablesConfig(runs, "2", RECIPES))
    assert not any(row.contrast for row in report.rows)
    assert "No run is labeled RVEDiT: set full" in to_markdown(report.sheet)


def test_sheets_escape(world):
    report = analyze_tables(TablesConfig((f"a|b_c & 50%={world / 'good'}",), "2", RECIPES))
    assert r"| a\|b_c & 50% |" in to_markdown(report.sheet)
    assert r"a\textbar{}b\_c \& 50\%" in to_latex(report.sheet)
    assert "p $<$ 0.05" in to_latex(report.sheet)
    assert r"w/o GRTC ($L_s$ = L)" in to_latex(report.sheet)
    assert "a|b_c & 50%,reference,1,10" in to_csv(report.rows, report.judge)
