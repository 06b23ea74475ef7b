"""Table 1's rows say what the editors do, and its command judges their outputs and compares."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from chat_server import ChatServer
from typer.testing import CliRunner

from rvedit.evaluation.judges import QWEN
from rvedit.io.errors import UserError
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.checkpoints.find import WAN
from rvedit.pipelines.checkpoints.outline import outline
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit_cli.main import app

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


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Playground clips with their true edits, as the outputs of one row, and of another row in part."""
    folder = tmp_path_factory.mktemp("table1")
    list(prepare_playground(PlaygroundConfig(4, 5, "test", 3, 32, 32), folder / "set", workers=1))
    for label, count in (("RVEDiT", 4), ("Kiwi-Edit", 2)):
        (folder / "outputs" / label).mkdir(parents=True)
        for clip in sorted((folder / "set/target").glob("*.mp4"))[:count]:
            shutil.copy(clip, folder / "outputs" / label / f"{clip.stem}_edited.mp4")
    return folder


def command(outputs, *more):
    words = ["judge", "table1", str(ROOT / "recipes/table1.yaml"), "--outputs", str(outputs / "outputs")]
    return [*words, "--bench", str(outputs / "set"), *map(str, more)]


def test_ours_stand_beside_the_papers(outputs):
    result = CliRunner().invoke(app, command(outputs, "--judge", "reference"))
    assert result.exit_code == 0, result.output
    assert "VACE: no outputs: rvedit edit --batch" in result.output
    assert "ICVE: no outputs: put the outputs of its own repository into" in result.output
    assert "RVEDiT: reference 4 verdicts, 0 cached" in result.output
    assert "Kiwi-Edit: reference 2 verdicts, 0 cached" in result.output
    folder = outputs / "outputs/table1_reference"
    assert "| RVEDiT" in (folder / "table1.md").read_text()
    table = json.loads((folder / "table1.json").read_text())
    rows = {row["label"]: row for row in table["rows"]}
    assert rows["RVEDiT"]["items"] == 4
    assert rows["RVEDiT"]["paper"]["change.ic"] == 78.71
    assert rows["VACE"]["ours"] == {}
    again = CliRunner().invoke(app, command(outputs, "--judge", "reference", "--json"))
    shown = json.loads(again.stdout)
    (ours,) = (row for row in shown["rows"] if row["label"] == "RVEDiT")
    assert ours["judges"][0]["from_cache"] == 4
    assert [row["label"] for row in shown["rows"] if row["has_outputs"]] == ["Kiwi-Edit", "RVEDiT"]
    assert list(shown["tables"]) == ["reference"]


def test_cost_is_counted_before_it_is_spent(outputs, monkeypatch):
    """One price for each judge; nothing is sent if it is too much."""
    only = ("--only", "RVEDiT", "--max-cost", "0.01")
    with ChatServer(models=(QWEN,)) as server:
        url = ("--base-url", server.url)
        refused = CliRunner().invoke(app, command(outputs, *only, *url))
        assert "`max_cost`: qwen has no price: give one with --price qwen=IN/OUT" in str(refused.exception)
        refused = CliRunner().invoke(app, command(outputs, *only, *url, "--price", "qwen=100/100"))
        assert isinstance(refused.exception, UserError)
        assert re.search(r"the run would cost about \d+\.\d\d: raise it", str(refused.exception))
        assert server.asked == []
        assert server.probes == 0
        dry = ("--only", "RVEDiT", "--judge", "qwen", "--judge", "reference", "--price", "qwen=100/100")
        plan = json.loads(CliRunner().invoke(app, command(outputs, *dry, *url, "--dry-run", "--json")).stdout)
        (qwen, reference) = plan["rows"][0]["judges"]
        assert (qwen["requests"], reference["requests"]) == (4, 0)
        assert qwen["completion_tokens"] == 4 * 80
        monkeypatch.setenv("GEMINI_API_KEY", "none")
        gemini = command(outputs, "--only", "RVEDiT", "--judge", "gemini", "--dry-run", "--json")
        (estimate,) = json.loads(CliRunner().invoke(app, gemini).stdout)["rows"][0]["judges"]
        assert estimate["completion_tokens"] == 4 * 2080, "with its thinking"
        tokens = qwen["prompt_tokens"] + qwen["completion_tokens"]
        assert plan["expected_cost"] == {"qwen": pytest.approx(tokens * 100 / 1e6)}
        assert server.asked == []


def test_a_run_within_its_cost_is_judged(outputs):
    words = "Instruction Compliance: 80\nConsistency & Detail Fidelity: 70\nVisual Quality & Stability: 60"
    with ChatServer(models=(QWEN,), say=lambda asked: words) as server:
        options = ("--base-url", server.url, "--only", "Kiwi-Edit", "--price", "qwen=1/1", "--max-cost", 1)
        shown = json.loads(CliRunner().invoke(app, command(outputs, *options, "--json")).stdout)
    assert len(server.asked) == 2
    assert shown["cost"] == {"qwen": pytest.approx(2 * 110 / 1e6)}
    (row,) = (row for row in shown["tables"]["qwen"]["rows"] if row["label"] == "Kiwi-Edit")
    assert row["items"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "Sora"], "`only` Sora: no row of the table"),
        (["--only", "VACE"], "has outputs of no row"),
        (["--judge", "measures"], "--judge measures: choose one of qwen, gemini, reference"),
    ],
)
def test_mistakes(outputs, arguments, says):
    refused = CliRunner().invoke(app, command(outputs, *arguments))
    assert isinstance(refused.exception, UserError)
    assert says in str(refused.exception)


def test_other_recipes_are_refused(outputs):
    words = ["judge", "table1", str(ROOT / "recipes/base.yaml"), "--outputs", str(outputs)]
    refused = CliRunner().invoke(app, words)
    assert "is not table1.yaml" in str(refused.exception)


def test_a_comparison_of_one_category(outputs):
    CliRunner().invoke(app, command(outputs, "--judge", "reference"))
    folders = [str(outputs / "outputs" / label) for label in ("RVEDiT", "Kiwi-Edit")]
    every = json.loads(CliRunner().invoke(app, ["judge", "--compare", *folders, "--json"]).stdout)
    names = [name for name in every["difference"]["reference"] if name != "overall"]
    one = ["judge", "--compare", *folders, "--category", names[0], "--json"]
    assert list(json.loads(CliRunner().invoke(app, one).stdout)["difference"]["reference"]) == [
        names[0],
        "overall",
    ]
    refused = CliRunner().invoke(app, ["judge", "--compare", *folders, "--category", "camera"])
    assert "`category` camera: was not judged: choose among" in str(refused.exception)
