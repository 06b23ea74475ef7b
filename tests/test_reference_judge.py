"""The reference judge: its scores are functions of measures that can be computed by hand."""

import asyncio
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from rvedit.editing.batch import BatchConfig, plan_batch
from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judges import Case
from rvedit.evaluation.protocols import PaperProtocol
from rvedit.evaluation.reference import ReferenceJudge, changed_region, instability, measure, scores_of
from rvedit.io.bench import BenchItem
from rvedit.io.chat import Journal
from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.io.video import VideoReader, write_clip
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.playground.world import render, sample_triplet
from rvedit_cli.main import app


def triplet_of(category, index=0):
    while (triplet := sample_triplet(5, index, "test")).category is not category:
        index += 1
    return [render(scene, 5, 64, 64) for scene in (triplet.source, triplet.target)]


@pytest.mark.parametrize("category", Category)
def test_the_target_has_100_and_the_source_1_for_compliance(category):
    source, target = triplet_of(category)
    whole = category is Category.STYLE
    assert scores_of(measure(source, target, target, whole)).values == (100, 100, 100)
    untouched = scores_of(measure(source, source, target, whole))
    assert untouched.ic == 1
    if not whole:
        assert untouched.cf == 100


def test_the_axes_are_apart():
    """Half of the edit, noise outside, flicker: each lowers its own axis most."""
    source, target = triplet_of(Category.CHANGE)
    region = changed_region(source, target)
    half = ((source.astype(float) + target) / 2).round().astype(np.uint8)
    # Half of the difference is a quarter of its square.
    assert measure(source, half, target, False)["gain"] == pytest.approx(0.75, abs=0.01)
    assert scores_of(measure(source, half, target, False)).ic == pytest.approx(1 + 99 * 0.75, abs=1)

    noisy = target.astype(int)
    noisy[~region] += 16
    noisy = noisy.clip(0, 255).astype(np.uint8)
    spoiled = measure(source, noisy, target, False)
    clipped = np.square((noisy.astype(float) - target)[~region] / 255).mean()
    assert spoiled["preservation"] == pytest.approx(-10 * math.log10(clipped), abs=1e-3)
    scores = scores_of(spoiled)
    assert scores.ic == 100
    assert scores.cf == pytest.approx(1 + 99 * (spoiled["preservation"] - 15) / 30, abs=0.01)
    assert scores.cf < 40

    flickering = target.astype(int)
    flickering[::2] += 12
    flickering = flickering.clip(0, 255).astype(np.uint8)
    assert scores_of(measure(source, flickering, target, True)).vq < 20


def test_instability_by_hand():
    """A target that rises by 10 levels a frame, an edit that stands still: 10 / (10 + 1)."""
    target = np.arange(0, 50, 10, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    still = np.full_like(target, 20)
    assert instability(still, target) == pytest.approx(10 / 11)
    assert instability(target, target) == 0
    assert instability(still[:1], target[:1]) == 0
    assert scores_of({"gain": 1.0, "preservation": 60.0, "instability": 10 / 11}).vq == pytest.approx(
        1 + 99 * math.exp(-10 / 11), abs=0.01
    )


def test_colour_does_not_count_as_structure():
    source, target = triplet_of(Category.STYLE)
    brighter = (target.astype(int) + 10).clip(0, 255).astype(np.uint8)
    moved = np.roll(target, 6, axis=2)
    assert measure(source, brighter, target, True)["preservation"] > 35
    assert measure(source, moved, target, True)["preservation"] < 30


def test_nothing_to_measure_is_said(tmp_path):
    source, target = triplet_of(Category.ADD)
    for whole in (False, True):
        with pytest.raises(UserError, match="are the same"):
            measure(source, target, source, whole)
    for name, clip in (("s", source), ("t", target), ("short", target[:3])):
        write_clip(tmp_path / f"{name}.mp4", clip, 12)
    journal = Journal(tmp_path / "journal.jsonl")
    judge = ReferenceJudge(journal, PaperProtocol(FrameStore(tmp_path / "frames", journal)))
    item = BenchItem(0, "a", "add a dog", Category.ADD, "add", tmp_path / "s.mp4", tmp_path / "t.mp4")
    verdict = asyncio.run(judge.score(Case(item, "add", tmp_path / "short.mp4")))
    assert verdict.dropped == "its edit is 3x64x64 (frames x height x width), the source 5x64x64"
    unknown = BenchItem(0, "a", "add a dog", Category.ADD, "add", tmp_path / "s.mp4")
    verdict = asyncio.run(judge.score(Case(unknown, "add", tmp_path / "t.mp4")))
    assert "it has no true edit" in verdict.dropped


@pytest.mark.slow
def test_the_chain_of_batch_and_judge(tmp_path):
    """prepare -> edit --batch -> judge, offline, as a user has it."""
    folder = tmp_path / "set"
    list(prepare_playground(PlaygroundConfig(3, 9, "test", 5, 64, 64), folder, workers=1))
    arguments = ["edit", "--batch", str(folder / "manifest.jsonl"), "--out-dir", str(tmp_path / "edits")]
    arguments += ["--steps", "1", "--json", "--model", "nano"]
    for shard, count in (("1/2", 2), ("2/2", 1)):
        result = CliRunner().invoke(app, [*arguments, "--shard", shard])
        report = json.loads(result.stdout)
        assert (report["edited"], report["there"], report["failures"]) == (count, 0, {})
    again = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (again["edited"], again["there"]) == (0, 3)
    other = CliRunner().invoke(app, [*arguments, "--seed", "4"])
    assert "its edits were made with seed 0, not 4: choose another `out_dir`" in str(other.exception)
    other = CliRunner().invoke(app, [*arguments, "--fast", "taylorseer"])
    assert "its edits were made with fast None, not taylorseer" in str(other.exception)
    judged = ["judge", str(tmp_path / "edits"), "--judge", "reference", "--json"]
    result = CliRunner().invoke(app, judged)
    summary = json.loads(result.stdout)["judges"]["reference"]
    assert (summary["scored"], summary["dropped"], summary["models"]) == (3, 0, ["reference-1"])
    rows = [json.loads(line) for line in (tmp_path / "edits/judge/scores.jsonl").read_text().splitlines()]
    assert all(len(row["source_frames"]) == 5 for row in rows)
    assert {row["measures"]["target_flicker"] > 0 for row in rows} == {True}
    identity = json.loads(
        CliRunner().invoke(app, [*judged, "--probe", "identity", "--out", str(tmp_path / "probe")]).stdout
    )
    assert identity["judges"]["reference"]["table"]["axes"]["ic"]["value"] == 1


def test_a_batch_passes_over_what_fails(tmp_path):
    folder = tmp_path / "set"
    list(prepare_playground(PlaygroundConfig(3, 9, "test", 1, 32, 32), folder, workers=1))
    (folder / "source" / "test_9_000001.mp4").write_bytes(b"no clip")
    arguments = ["edit", "--batch", str(folder), "--out-dir", str(tmp_path / "edits"), "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, "--model", "nano"])
    assert result.exit_code == 1
    assert "2 edited, 0 skipped (already edited), 1 failed" in result.stdout
    failures = [json.loads(line) for line in (tmp_path / "edits" / "failures.jsonl").read_text().splitlines()]
    assert [row["id"] for row in failures] == ["test_9_000001"]
    assert "test_9_000001.mp4" in failures[0]["reason"]


def test_edits_of_two_kinds_are_never_in_one_folder(tmp_path):
    """Made anew in another way, none of the old is left, be it for a clip that fails or for a kill."""
    folder, edits = tmp_path / "set", tmp_path / "edits"
    list(prepare_playground(PlaygroundConfig(3, 9, "test", 1, 32, 32), folder, workers=1))
    arguments = ["edit", "--batch", str(folder), "--out-dir", str(edits), "--steps", "1", "--model", "nano"]
    CliRunner().invoke(app, arguments)
    before = {path.name: path.read_bytes() for path in edits.glob("*_edited.mp4")}
    assert len(before) == 3
    refused = CliRunner().invoke(app, [*arguments, "--overwrite", "--device", "cuda:7"])
    assert isinstance(refused.exception, UserError)
    assert {path.name: path.read_bytes() for path in edits.glob("*_edited.mp4")} == before
    (folder / "source" / "test_9_000001.mp4").write_bytes(b"no clip")
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--seed", "1", "--shard", "1/3"])
    assert again.exit_code == 0
    assert [path.name for path in edits.glob("*_edited.mp4")] == ["test_9_000000_edited.mp4"]


def test_names_of_edits_are_of_the_whole_list_and_apart(tmp_path):
    rows = ["edited_type,prompt,original_video"]
    rows += [f"local_add,x,{name}" for name in ("a/clip 1.mp4", "a/clip_1.mp4", "b.mp4", "a/b.mp4", "c.mp4")]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    names = [[item.edited.name for item in plan_batch(BatchConfig(tmp_path / "list.csv", tmp_path, limit=n))]
             for n in (None, 3)]  # fmt: skip
    assert len(set(names[0])) == 5
    assert names[0][-1] == "c_edited.mp4"
    assert names[1] == names[0][:3]


@pytest.mark.slow
def test_a_batch_in_passes_of_several(tmp_path):
    """What goes in one pass is as alone; a long clip, and one that is none, do not hold up the rest."""
    folder = tmp_path / "set"
    list(prepare_playground(PlaygroundConfig(5, 9, "test", 5, 48, 48), folder, workers=1))
    write_clip(folder / "source" / "test_9_000003.mp4", np.zeros((12, 48, 48, 3), np.uint8), 12)
    (folder / "source" / "test_9_000004.mp4").write_bytes(b"no clip")
    arguments = ["edit", "--batch", str(folder), "--steps", "1", "--json", "--model", "nano"]
    for together in ("1", "4"):
        out = ["--out-dir", str(tmp_path / together), "--together", together]
        report = json.loads(CliRunner().invoke(app, [*arguments, *out]).stdout)
        assert report["edited"] == 4
        assert list(report["failures"]) == ["test_9_000004"]
    for alone in sorted((tmp_path / "1").glob("*.mp4")):
        a, b = (
            np.stack([timed.frame for timed in VideoReader(path)])
            for path in (alone, tmp_path / "4" / alone.name)
        )
        assert a.shape == b.shape
        assert np.abs(a.astype(int) - b).mean() < 0.1, "but for the order of sums, and the encoder"
    made = json.loads((tmp_path / "4" / "settings.json").read_text())
    assert (made["detail"], made["preserve"]) == ("auto", False), "how the edits were made is recorded"
    refused = CliRunner().invoke(app, [*arguments, *out, "--detail", "off"])
    assert "its edits were made with detail auto, not 0.0" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "x.csv"], "--out-dir"),
        (["a.mp4", "red", "--together", "2"], "--together and --ray are for --batch"),
        (["a.mp4", "red", "--ray", "local"], "--together and --ray are for --batch"),
        (["a.mp4", "red", "--batch", "x.csv", "--out-dir", "o"], "leave out INPUT"),
        (["--batch", "x.csv", "--out-dir", "o"], "no such file"),
        (["--batch", "x.csv", "--out-dir", "o", "--shard", "3/2"], "give I/N"),
        (["a.mp4"], "give a clip and an instruction"),
    ],
)
def test_mistakes_of_a_batch(arguments, says):
    result = CliRunner().invoke(app, ["edit", *arguments])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)


def test_a_model_that_is_not_there_is_one_error(tmp_path):
    folder = tmp_path / "set"
    list(prepare_playground(PlaygroundConfig(2, 9, "test", 1, 32, 32), folder, workers=1))
    arguments = ["edit", "--batch", str(folder), "--out-dir", str(tmp_path / "edits"), "--model", "/nowhere"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "edits" / "failures.jsonl").exists()
    assert not (tmp_path / "edits" / "settings.json").exists(), "the right model may still be named"
