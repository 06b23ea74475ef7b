"""Manifests: both forms hold the same, and what is wrong is said by row and field."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rvedit.io.errors import UserError
from rvedit.io.manifest import (
    Failure,
    clip_path,
    failures_path,
    prepare_folder,
    read_manifest,
    read_rows,
    relative_root,
    write_failures,
    write_manifest,
)
from rvedit.io.records import Category, Triplet

ROW = Triplet(
    id="a-1",
    dataset="openve",
    root="../set",
    source="s.mp4",
    target="t.mp4",
    instruction="turn it\u2028into a “dog”\x85",
    category=Category.CHANGE,
    dataset_category="local_change",
    num_frames=81,
    fps=15.0,
    width=1280,
    height=704,
    licence="CC BY-NC 4.0",
)
ROWS = [ROW, replace(ROW, id="a-2", category=None, target_caption="a dog", fps=24000 / 1001)]


def test_parquet_and_jsonl_hold_the_same_rows(tmp_path):
    write_manifest(tmp_path / "manifest.parquet", ROWS)
    assert read_manifest(tmp_path / "manifest.parquet") == ROWS
    assert read_manifest(tmp_path / "manifest.jsonl") == ROWS
    assert read_manifest(tmp_path) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", "manifest.parquet"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object but a list"),
        ('{"id": "a"}', "row 1: the field dataset is missing"),
        ("", "the manifest is empty"),
    ],
)
def test_mistakes_are_named(tmp_path, text, says):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        read_manifest(tmp_path / "manifest.jsonl")


def test_wrong_values_are_named(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write_manifest(tmp_path / "manifest.parquet", ROWS)
    path.write_text(path.read_text().replace('"change"', '"paint"'))
    with pytest.raises(UserError, match="row 1: category is 'paint': choose one of change"):
        read_manifest(path)
    write_manifest(tmp_path / "manifest.parquet", [replace(ROW, instruction="  ")])
    with pytest.raises(UserError, match=r"row 1 \(a-1\): the instruction is empty"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="not a parquet file"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"source": 3}, "row 1: source is 3, not text"),
        ({"instruction": None}, "row 1: instruction is None, not text"),
        ({"width": "wide"}, "row 1: width is 'wide', not a number"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, values, says):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({**asdict(ROW), **values}))
    with pytest.raises(UserError, match=says):
        read_manifest(path)


@pytest.mark.parametrize(("name", "encoding"), [("a.JSONL", "utf-8-sig"), ("b.jsonl", "utf-16")])
def test_a_manifest_saved_by_another_system_is_read(tmp_path, name, encoding):
    row = {**asdict(ROW), "source": "clips\\s.mp4"}
    (tmp_path / name).write_bytes(f"{json.dumps(row, ensure_ascii=False)}\r\n\r\n".encode(encoding))
    assert read_manifest(tmp_path / name) == [replace(ROW, source="clips/s.mp4")]


def test_roots_are_relative_where_that_means_something(tmp_path):
    assert relative_root(tmp_path / "data" / "set", tmp_path / "data" / "out") == "../set"
    assert relative_root(tmp_path, tmp_path) == "."
    assert relative_root("/elsewhere/set", tmp_path) == "/elsewhere/set"


def test_a_manifest_in_a_linked_folder_leads_to_its_clips(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "s.mp4").touch()
    (tmp_path / "far" / "away" / "out").mkdir(parents=True)
    os.symlink(tmp_path / "far" / "away" / "out", tmp_path / "out")
    row = replace(ROW, root=relative_root(tmp_path / "set", tmp_path / "out"))
    assert clip_path(tmp_path / "out" / "manifest.parquet", row, "source").is_file()


def test_failures_lie_beside_the_manifest(tmp_path):
    failure = Failure("openve", "too short", "5 frames of at least 81", "local_add.csv", 3, "a-1")
    write_failures(tmp_path / "manifest.parquet", [failure])
    (row,) = read_rows(failures_path(tmp_path / "manifest.parquet"))
    assert failures_path(tmp_path / "manifest.parquet").name == "manifest.failures.jsonl"
    assert (row["id"], row["reason"], row["file"], row["row"]) == ("a-1", "too short", "local_add.csv", 3)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_manifest(Path("/proc/manifest.parquet"), ROWS)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another `out`"):
        prepare_folder(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
