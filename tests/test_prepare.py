"""`rvedit prepare` on small data sets: what is usable, what fails and why, and runs that end too early."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from processes import rvedit
from test_sources import clip, make_ditto, make_openve, make_reco, source_clip, target_clip, write_csv

from rvedit.datasets.mix import MixRecipe, draw_mix
from rvedit.datasets.prepare import measure_clips, prepare_dataset
from rvedit.datasets.probe import LEVELS, Measurement, judge_pair, probe_clip
from rvedit.datasets.survey import DatasetConfig, survey_dataset
from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, read_rows
from rvedit.io.records import Category


def prepare(*arguments, cwd, check=0):
    return rvedit("prepare", *arguments, cwd=cwd, check=check)


def order(dataset, folder, **options):
    options = {"min_frames": 5, "workers": 1, **options}
    return DatasetConfig(dataset, (folder,), folder.parent / "out", **options)


def many(folder, count, **shape):
    """An OpenVE-3M of `count` pairs with clips of their own."""
    pool = folder / "videos"
    source, target = source_clip(pool / "s.mp4", **shape), target_clip(pool / "t.mp4", **shape)
    for index in range(count):
        os.link(source, pool / f"s{index}.mp4")
        os.link(target, pool / f"t{index}.mp4")
    rows = [(f"t{index}.mp4", f"add thing {index}", f"s{index}.mp4") for index in range(count)]
    write_csv(folder / "local_add.csv", ("video", "prompt", "original_video"), rows, ";")
    return folder


def test_a_manifest_says_what_the_clips_are(tmp_path):
    folder = make_reco(tmp_path / "ReCo-Data")
    for side in ("src", "tar"):
        (folder / "add" / f"{side}_videos" / "0.mp4").unlink()
    clip(folder / "add" / "src_videos" / "0.mp4", 40, num_frames=8, height=48, width=64)
    clip(folder / "add" / "tar_videos" / "0.mp4", 200, num_frames=7, height=24, width=32)
    report = prepare_dataset(order("reco", folder))
    rows = read_manifest(report.manifest)
    assert (report.count, len(rows), report.reasons) == (8, 8, {})
    by_clip = {row.target: row for row in rows}
    mended = by_clip["add/tar_videos/0.mp4"]
    assert (mended.num_frames, mended.width, mended.height, mended.fps) == (7, 32, 24, 12.0)
    assert (mended.category, mended.dataset_category, mended.dataset) == (Category.ADD, "add", "reco")
    assert all(
        clip_path(report.manifest, row, side).is_file() for row in rows for side in ("source", "target")
    )
    assert {(row["word"], row["read"], row["usable"]) for row in report.categories} == {
        (word, 2, 2) for word in ("add", "remove", "replace", "style")
    }


def test_every_pair_that_fails_is_listed_with_its_reason(tmp_path):
    folder = make_openve(tmp_path / "OpenVE-3M")
    pool = folder / "videos"
    target_clip(pool / "wide.mp4", width=48)
    target_clip(pool / "long.mp4", num_frames=9)
    target_clip(pool / "short.mp4", num_frames=4)
    (pool / "text.mp4").write_text("not a video")
    (pool / "empty.mp4").touch()
    (pool / "folder.mp4").mkdir()
    whole = target_clip(pool / "cut.mp4", num_frames=40, height=96, width=128).read_bytes()
    (pool / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    names = ("wide", "long", "short", "text", "empty", "folder", "cut", "gone", "cat_edit")
    rows = [(f"{name}.mp4", f"remove {name}", "cat.mp4") for name in names]
    write_csv(folder / "local_remove.csv", ("video", "prompt", "original_video"), rows, ";")
    report = prepare_dataset(order("openve", folder, categories=("remove",)))
    assert [row.instruction for row in read_manifest(report.manifest)] == ["remove cat_edit"]
    failures = read_rows(tmp_path / "out" / "manifest.failures.jsonl")
    assert {names[failure["row"] - 1]: failure["reason"] for failure in failures} == {
        "wide": "sizes differ",
        "long": "lengths differ",
        "short": "too short",
        "text": "target does not decode",
        "empty": "target does not decode",
        "folder": "target does not decode",
        "cut": "target does not decode",
        "gone": "missing target",
    }
    assert report.reasons["target does not decode"] == 4
    details = {names[failure["row"] - 1]: failure["detail"] for failure in failures}
    assert details["wide"] == "source 32x24, target 48x24"
    assert details["short"] == "4 frames of at least 5"


CLIP = Measurement(1280, 720, 101, 20.0)


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        (CLIP, CLIP, CLIP),
        (CLIP, replace(CLIP, width=832, height=468, fps=16.0), replace(CLIP, width=832, height=468)),
        (CLIP, replace(CLIP, width=848, height=480), replace(CLIP, width=848, height=480)),  # 0.6% off
        (CLIP, replace(CLIP, width=832, height=480), "sizes differ"),  # 2.5% off
        (CLIP, replace(CLIP, width=720, height=1280), "sizes differ"),
        (replace(CLIP, num_frames=104), CLIP, CLIP),
        (replace(CLIP, num_frames=105), CLIP, "lengths differ"),
        (replace(CLIP, num_frames=80), replace(CLIP, num_frames=80), "too short"),
        (replace(CLIP, num_frames=83), replace(CLIP, num_frames=80), "too short"),
        (Measurement(error="damaged"), CLIP, "source does not decode"),
    ],
)
def test_the_rule_for_pairs(source, target, verdict):
    judged = judge_pair(source, target, min_frames=81)
    assert judged == verdict if isinstance(verdict, Measurement) else judged[0] == verdict


def test_levels_of_probing_find_more_and_more(tmp_path):
    path = target_clip(tmp_path / "noise.mp4", num_frames=30, height=96, width=128)
    assert {probe_clip(str(path), level) for level in LEVELS} == {Measurement(128, 96, 30, 12.0)}
    # Bytes in the middle of the pictures' data: every packet is there, but one does not decode.
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 60 + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    assert probe_clip(str(path), "full").error


def test_a_second_run_probes_nothing_again(tmp_path):
    folder = many(tmp_path / "set", 6)
    first = prepare_dataset(order("openve", folder))
    journal = (tmp_path / "out" / "manifest.probes.jsonl").read_text()
    assert len(journal.splitlines()) == 12
    # Another rule needs no new probe; a changed clip, and a closer look, do.
    with pytest.raises(UserError, match=r"no pair can be used \(too short: 6\): see .*failures.jsonl"):
        prepare_dataset(order("openve", folder, min_frames=81))
    assert (tmp_path / "out" / "manifest.probes.jsonl").read_text() == journal
    assert len(read_manifest(first.manifest)) == 6
    (folder / "videos" / "t3.mp4").unlink()
    target_clip(folder / "videos" / "t3.mp4", num_frames=4)
    report = prepare_dataset(order("openve", folder))
    assert (report.count, report.reasons) == (5, {"too short": 1})
    assert len((tmp_path / "out" / "manifest.probes.jsonl").read_text().splitlines()) == 13
    prepare_dataset(order("openve", folder, level="full"))
    assert len((tmp_path / "out" / "manifest.probes.jsonl").read_text().splitlines()) == 25


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, how):
    folder = many(tmp_path / "set", 24, num_frames=60, height=240, width=320)
    arguments = ["openve", "set", "--min-frames", "5", "--probe", "full", "--workers", "2", "--out"]
    command = [sys.executable, "-m", "rvedit_cli", "prepare", *arguments, "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out" / "manifest.probes.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_text().count("\n") > 4):
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)  # ends when the workers, who hold the pipes, end too
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 128 + how)
    assert "Traceback" not in stderr
    before = journal.read_text()
    done = before.count("\n")
    assert 4 < done < 48, "it was not interrupted midway"
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    with journal.open("a") as file:
        file.write('{"id": "torn')
    prepare(*arguments, "out", cwd=tmp_path)
    after = journal.read_text()
    assert after.startswith(before)
    lines = [line for line in after.splitlines() if line and "torn" not in line]
    assert len(lines) == len({json.loads(line)["id"] for line in lines}) == 48
    prepare_dataset(replace(order("openve", folder), out=tmp_path / "undisturbed"))
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "undisturbed")


def test_progress_counts_clips_that_were_done_before(tmp_path):
    folder = many(tmp_path / "set", 5)
    wanted = order("openve", folder)
    assert list(measure_clips(survey_dataset(wanted))) == list(range(11))
    assert list(measure_clips(survey_dataset(wanted))) == [10]


def test_a_limit_looks_ahead_to_the_draw(tmp_path):
    folder = many(tmp_path / "set", 40)
    for name, limit in (("whole", None), ("limited", 12)):
        prepare_dataset(replace(order("openve", folder, limit=limit, seed=7), out=tmp_path / name))
    assert len(read_manifest(tmp_path / "limited")) == 12
    drawn = [
        [row.key for row in draw_mix(mix, tmp_path / "mix").triplets]
        for mix in (
            MixRecipe(sources=(str(tmp_path / name),), per_category=10, seed=7)
            for name in ("whole", "limited")
        )
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 10


def test_the_commands_as_users_meet_them(tmp_path):
    make_openve(tmp_path / "OpenVE-3M")
    make_ditto(tmp_path / "Ditto-1M")
    before = sorted(tmp_path.rglob("*"))
    common = ("--min-frames", 5, "--out")
    dry = json.loads(prepare("ditto", "Ditto-1M", *common, "d", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (dry["clips"], dry["reasons"]) == (6, {"repeated row": 1})
    assert dry["clip_bytes"] == sum(path.stat().st_size for path in (tmp_path / "Ditto-1M").rglob("*.mp4"))
    assert (
        "nothing was written" in prepare("ditto", "Ditto-1M", *common, "d", "--dry-run", cwd=tmp_path).stdout
    )
    assert sorted(tmp_path.rglob("*")) == before
    done = prepare("ditto", "Ditto-1M", *common, "d", cwd=tmp_path)
    assert "global_style" in done.stdout
    assert "repeated row" in done.stdout
    assert "d/manifest.parquet: 5 triplets; 1 rows failed" in done.stdout.replace("\n", " ")
    assert done.stderr == ""
    result = json.loads(prepare("openve", "OpenVE-3M", *common, "o", "--json", cwd=tmp_path).stdout)
    assert (result["count"], result["manifest"]) == (5, "o/manifest.parquet")
    (tmp_path / "mine.yaml").write_text("sources: [d, o]\nper_category: 1\n")
    before = sorted(tmp_path.rglob("*"))
    dry = json.loads(prepare("mix", "mine.yaml", "--out", "m", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert sorted(tmp_path.rglob("*")) == before
    done = prepare("mix", "mine.yaml", "--out", "m", cwd=tmp_path)
    assert "m/manifest.parquet: 7 triplets" in done.stdout
    mixed = json.loads((tmp_path / "m" / "mix.json").read_text())
    assert mixed["strata"] == dry["strata"]
    short = {(row["dataset"], row["category"]): row["short"] for row in mixed["strata"] if row["short"]}
    assert short == {("openve", "remove"): 1}
    assert len(read_manifest(tmp_path / "m")) == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["openve", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["openve", "empty", "--out", "x"], "no metadata of openve"),
        (["openve", "OpenVE-3M", "--out", "x", "--category", "paint"], "--category paint"),
        (["openve", "OpenVE-3M", "--out", "x", "--probe", "hard"], "--probe hard: choose one of header"),
        (["openve", "OpenVE-3M", "--out", "x", "--limit", "0"], "--limit 0"),
        (["openve", "OpenVE-3M", "--out", "/proc/x"], "/proc/x: cannot be written to"),
        (["openve", "OpenVE-3M", "--out", "reco"], "is a manifest of reco: choose another --out"),
        (["openve", "OpenVE-3M", "--out", "x", "--ray", "localhost:1"], "--ray localhost:1: no cluster"),
        (["mix", "none.yaml", "--out", "x"], "none.yaml: no such recipe"),
        (["mix", "bad.yaml", "--out", "x"], "unknown key source: choose one of sources"),
        (["mix", "far.yaml", "--out", "x"], "no such manifest"),
        (["mix", "mix.yaml", "--out", "/proc/x"], "/proc/x: cannot be written to"),
        (["mix", "words.yaml", "--out", "x"], "no manifest has 'paint'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, says):
    if "--ray" in arguments:
        pytest.importorskip("ray")
    make_openve(tmp_path / "OpenVE-3M")
    (tmp_path / "empty").mkdir()
    prepare_dataset(replace(order("reco", make_reco(tmp_path / "ReCo")), out=tmp_path / "reco"))
    for name, text in (
        ("bad", "source: [reco]"),
        ("far", "sources: [far]"),
        ("mix", "sources: [reco]"),
        ("words", "{sources: [reco], categories: [paint]}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    done = prepare(*arguments, cwd=tmp_path, check=2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_playgrounds_manifest(tmp_path):
    prepare("playground", "--count", 3, "--num-frames", 4, "--out", "p", "--seed", 5, cwd=tmp_path)
    rows = read_manifest(tmp_path / "p")
    assert [row.id for row in rows] == ["train_5_000000", "train_5_000001", "train_5_000002"]
    for row in rows:
        assert (row.dataset, row.root, row.licence, row.num_frames) == ("playground", ".", "Apache-2.0", 4)
        assert row.category.value == row.dataset_category
        assert row.target_caption
        assert clip_path(tmp_path / "p", row, "target").is_file()
