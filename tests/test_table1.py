"""Table 1's rows say what the editors do, and its script edits, judges and compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.checkpoints.find import WAN
from rvedit.pipelines.checkpoints.outline import outline
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

KIWI = "linyq/kiwi-edit-5b-instruct-only-diffusers"
ROOT = Path(__file__).parents[1]
ROWS = {row["label"]: row for row in yaml.safe_load((ROOT / "recipes/table1.yaml").read_text())["rows"]}


@pytest.mark.parametrize("label", [label for label, row in ROWS.items() if row.get("model") in BASELINES])
def test_rows_of_other_editors_have_their_native_size_and_weights(label):
    row = ROWS[label]
    known = BASELINES[row["model"]]
    native = known.native
    assert row["size"] == f"{native.height}x{native.width}"
    assert row["frames"] == native.num_frames
    assert known.weights in row["weights"]
    assert known.lora_weights is None or known.lora_weights in row["weights"]


@pytest.mark.parametrize(("label", "weights"), [("Kiwi-Edit", KIWI), ("RVEDiT", WAN[48])])
def test_rows_of_this_pipeline_are_of_the_size_that_it_edits_720p_in(label, weights):
    pipeline = outline(weights)
    assert ROWS[label]["size"] == "{}x{}".format(*pipeline.model_size(720, 1280))
    assert ROWS[label]["frames"] == pipeline.config.window_frames


def test_the_script_goes_from_clips_to_a_table(tmp_path):
    list(prepare_playground(PlaygroundConfig(4, 5, "test", 3, 32, 32), tmp_path / "set", workers=1))
    words = ["--judge", "reference", "--only", "RVEDiT", "--model", "RVEDiT=nano", "--steps", "1"]
    folders = ["--bench", tmp_path / "set", "--work", tmp_path / "work"]
    command = [sys.executable, ROOT / "benchmarks/table1.py", *folders, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "work/RVEDiT").glob("*_edited.mp4"))) == 4
    table = json.loads((tmp_path / "work/reference/table1.json").read_text())
    assert "RVEDiT" in json.dumps(table)
    assert "| RVEDiT" in (tmp_path / "work/reference/table1.md").read_text()
