"""Worker processes end with the run, and clips that cannot be read do not end it."""

import json
import signal
import time
import warnings
from itertools import islice

import psutil
import pytest
from conftest import SMALL, losses_of
from processes import Command, run_two, start_two
from test_training import wait_for_steps, words_of

from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.training.run import train
from rvedit.training.validation import validation_clips

SIZE = {"num_frames": 5, "height": 32, "width": 32}


@pytest.fixture
def manifest(tmp_path):
    """Six triplets."""
    list(prepare_playground(PlaygroundConfig(6, **SIZE), tmp_path / "triplets", workers=1))
    return tmp_path / "triplets" / "manifest.parquet"


@pytest.fixture
def recipe_on(recipe_of, manifest):
    """`recipe_on(name, *assignments)`: as `recipe_of`, on the manifest; six steps see each triplet twice."""
    return lambda name, *assignments: recipe_of(name, *on_manifest(manifest), *assignments)


def on_manifest(manifest):
    return ("data.source=manifest", f"data.manifest={manifest}")


def clips_of(manifest, side):
    return [clip_path(manifest, triplet, side) for triplet in read_manifest(manifest)]


def unreadable_of(runs, name):
    lines = (runs / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["unreadable"] for line in lines]


def wait_until_ended(processes):
    """Until they are gone, or zombies, which nobody has waited for."""
    deadline = time.monotonic() + 60
    while processes:
        assert time.monotonic() < deadline, f"still running: {processes}"
        processes = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(recipe_of, tmp_path):
    path, _ = recipe_of("killed")
    process = Command(*words_of(path, tmp_path, "data.workers=2", "steps=200"), cwd=tmp_path)
    wait_for_steps(tmp_path / "killed" / "metrics.jsonl", 1, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.finish()
    wait_until_ended(workers)


@pytest.mark.slow
def test_a_run_ends_with_an_error_although_its_workers_ignore_signals(recipe_on, manifest, tmp_path):
    path, _ = recipe_on("gone")
    missing = clips_of(manifest, "target")[2]
    missing.unlink()
    options = (*on_manifest(manifest), "data.workers=2", "data.max_unreadable=0")
    done = Command(*words_of(path, tmp_path, *options), cwd=tmp_path).finish(timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"clips cannot be read, too many for data.max_unreadable: {missing};" in line


def test_another_clip_takes_the_place_of_one_that_cannot_be_read(recipe_on, manifest, tmp_path):
    """The same in a run that is stopped and resumed, and each is counted once."""
    clips_of(manifest, "source")[1].unlink()
    clips_of(manifest, "target")[4].write_bytes(b"no clip")
    with pytest.warns(UserWarning, match="another clip takes its place") as caught:
        list(train(recipe_on("whole", "steps=4")[1], tmp_path, "cpu"))
    assert len(caught) == 2
    assert unreadable_of(tmp_path, "whole")[2:] == [2, 2], "three steps are an epoch"
    with pytest.warns(UserWarning, match="another clip takes its place"):
        list(islice(train(recipe_on("parts", "steps=4")[1], tmp_path, "cpu"), 3))
    warnings.simplefilter("ignore", UserWarning)  # the third step is computed again: checkpoint_every is 2
    list(train(recipe_on("parts", "steps=4")[1], tmp_path, "cpu"))
    for values_of in (losses_of, unreadable_of):
        assert values_of(tmp_path, "parts") == values_of(tmp_path, "whole")


def test_too_many_clips_that_cannot_be_read_are_named(recipe_on, manifest, tmp_path):
    gone = clips_of(manifest, "source")
    for path in gone[:3]:
        path.unlink()
    _, recipe = recipe_on("few", "data.max_unreadable=2")
    with (
        pytest.warns(UserWarning, match="another clip takes its place"),
        pytest.raises(
            UserError, match=r"clips cannot be read, too many for data\.max_unreadable: "
        ) as caught,
    ):
        list(train(recipe, tmp_path, "cpu"))
    assert all(str(path) in str(caught.value) for path in gone[:3])
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="another clip takes its place"):  # the limit may be raised
        assert list(train(recipe_on("few", "data.max_unreadable=3")[1], tmp_path, "cpu"))
    for path in gone[3:]:
        path.unlink()
    with pytest.raises(UserError, match=r"too many for data\.max_unreadable: .*; the last: .* is missing"):
        list(train(recipe_on("none")[1], tmp_path, "cpu"))


def test_validation_shows_clips_that_can_be_read(recipe_on, manifest):
    _, recipe = recipe_on("shown", "validation.count=2")
    before = validation_clips(recipe)
    clips_of(manifest, "target")[0].unlink()
    with pytest.warns(UserWarning, match="validation shows another clip"):
        clips = validation_clips(recipe)
    assert len(clips) == 2
    assert clips[0].instruction == before[1].instruction
    for path in clips_of(manifest, "source"):
        path.unlink()
    with (
        pytest.warns(UserWarning, match="validation shows another clip"),
        pytest.raises(UserError, match="has no clip to validate with"),
    ):
        validation_clips(recipe)


@pytest.mark.slow
def test_processes_stay_in_step_over_a_clip_that_cannot_be_read(recipe_on, manifest, tmp_path):
    clips_of(manifest, "source")[1].unlink()
    options = ("batch_size=4", "steps=3")
    path, recipe = recipe_on("one", *options)
    with pytest.warns(UserWarning, match="another clip takes its place"):
        list(train(recipe, tmp_path, "cpu"))
    run_two(path, tmp_path, *SMALL, *on_manifest(manifest), *options, "name=two")
    assert losses_of(tmp_path, "two") == pytest.approx(losses_of(tmp_path, "one"), rel=1e-4)
    assert unreadable_of(tmp_path, "two") == unreadable_of(tmp_path, "one")
    strict = (*options, "name=strict", "data.max_unreadable=0")
    for process in start_two(path, tmp_path, *SMALL, *on_manifest(manifest), *strict):
        done = process.finish()
        assert done.returncode != 0
        assert done.stderr.count("too many for data.max_unreadable") == 1, "both say so, and neither waits"
