"""Model cards: what a checkpoint was made from, its licences, recipe and scores, wherever it goes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import edit, make_pipeline, random_clip

from rvedit.editing.config import EditConfig
from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints import load_checkpoint
from rvedit.pipelines.model_card import KIWI, QWEN, WAN, Provenance
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.training.run import train

SCORES = {
    "qwen": {
        "table": {
            "categories": {
                "change": {
                    "axes": {a: {"value": v} for a, v in (("ic", 70.0), ("cf", 60.5), ("vq", 50.25))},
                    "score": {"value": 60.25},
                }
            },
            "overall": {"value": 60.25},
        }
    }
}


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_what_is_not_free_is_said():
    kiwi = Provenance((KIWI, WAN, QWEN), ("OpenVE-3M",)).card("editor", {})
    assert header(kiwi)["license"] == "other"
    assert header(kiwi)["base_model"] == [WAN, QWEN]
    assert "| OpenVE-3M | CC BY-NC 4.0 (not for commercial use) |" in kiwi
    assert header(Provenance(("nano",)).card("editor", {}))["license"] == "apache-2.0"
    assert header(Provenance(("somebody/else",)).card("editor", {}))["license"] == "other"
    assert header(Provenance().card("editor", {}))["license"] == "other", "nothing known is nothing allowed"


def test_a_saved_folder_loads_elsewhere_and_keeps_its_record(tiny_tokenizer, tmp_path):
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.provenance = Provenance((WAN, QWEN), ("OpenVE-3M",), {"steps": 7, "name": "mine"}, SCORES)
    pipeline.save_pretrained(tmp_path / "here" / "my-editor")
    shutil.move(tmp_path / "here", tmp_path / "there")
    folder = tmp_path / "there" / "my-editor"
    again = load_checkpoint(folder)
    assert again.provenance == pipeline.provenance
    assert RVEDiTPipeline.from_pretrained(folder).provenance == pipeline.provenance
    clip, settings = random_clip(5), EditConfig(2)
    assert np.array_equal(
        edit(again, clip, "make it red", settings), edit(pipeline, clip, "make it red", settings)
    )
    card = (folder / "README.md").read_text()
    assert "# my-editor" in card
    assert "steps: 7" in card
    assert "| qwen | change | 70.00 | 60.50 | 50.25 | 60.25 |" in card
    assert "| qwen | Overall | | | | 60.25 |" in card
    everything = " ".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md"))
    assert str(tmp_path) not in everything, "no path of this machine"


@pytest.mark.slow
def test_a_run_records_what_it_trained(recipe_of, tmp_path):
    _, recipe = recipe_of("recorded", "steps=1")
    assert Path(recipe.model.init_from).is_absolute()
    list(train(recipe, tmp_path, "cpu"))
    folder = tmp_path / "recorded" / "model"
    made = load_checkpoint(folder).provenance
    assert str(tmp_path) not in (folder / "README.md").read_text(), "no path of this machine"
    (folder / "provenance.json").write_text('{"base": [')
    with pytest.raises(UserError, match=r"provenance.json: cannot be read"):
        load_checkpoint(folder)
    assert made.data == ("the playground, drawn by rvedit",)
    assert made.recipe is not None
    assert made.recipe["steps"] == 1


def test_it_is_uploaded_with_its_card(tiny_tokenizer, monkeypatch):
    """The hub's client is asked for a repository and given a folder that loads; nothing is sent."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    sent = []

    class Hub:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private=None, exist_ok=False):
            return type("Repo", (), {"repo_id": repo_id, "__str__": lambda self: f"https://hub/{repo_id}"})()

        def upload_folder(self, repo_id, folder_path):
            files = {path.name for path in Path(folder_path).iterdir()}
            sent.append((repo_id, files, load_checkpoint(Path(folder_path)).provenance))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.provenance = replace(pipeline.provenance, base=("nano",))
    assert pipeline.push_to_hub("me/my-editor", token="secret") == "https://hub/me/my-editor"
    ((repo, files, provenance),) = sent
    assert repo == "me/my-editor"
    assert {"README.md", "provenance.json", "model_index.json", "transformer"} <= files
    assert provenance.base == ("nano",)
