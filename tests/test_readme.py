"""Every command and snippet of the README runs, on stand-ins for its files, weights and servers."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from chat_server import ChatServer
from conftest import SMALL, make_pipeline, random_clip
from PIL import Image
from processes import rvedit

from rvedit.io.video import VideoReader, write_clip
from rvedit.pipelines.checkpoints import add_reference_modules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = {
    kind: "\n".join(re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)) for kind in ("bash", "python")
}
COMMANDS = re.findall(r"(?:^|&& )(rvedit [^#\n]+)", BLOCKS["bash"], re.MULTILINE)
OTHERS = [line for line in BLOCKS["bash"].splitlines() if line and "rvedit " not in line]


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1500


def test_what_else_the_readme_installs_ci_runs_too() -> None:
    assert len(COMMANDS) >= 12
    script = (ROOT / ".ci" / "run").read_text()
    for line in OTHERS:
        for command in line.partition("#")[0].split("&&"):
            words = command.replace("'.[dev]'", "").split()
            assert all(word in script for word in words), command
    assert "pip install . && rvedit edit" in BLOCKS["bash"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A folder with all that the README names."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "assets").mkdir()
    with VideoReader(ROOT / "assets" / "park.mp4") as reader:
        write_clip(
            folder / "assets" / "park.mp4", np.stack([timed.frame[::4, ::4] for timed in reader][:9]), 12
        )
    for name in ("clip.mp4", "clip.mov"):
        write_clip(folder / name, random_clip(9, 64, 64), 12)
    pipeline = make_pipeline(tiny_tokenizer)
    add_reference_modules(pipeline)  # one command gives a picture
    Image.fromarray(random_clip(1)[0]).save(folder / "hat.png")
    pipeline.save_pretrained(folder / "DIR")
    size = ("--height", 64, "--width", 64, "--num-frames", 5)
    for out in (".", "data/mix"):
        rvedit("prepare", "playground", "--out", out, "--count", 2, *size, cwd=folder, check=0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, home: Path, vae_run: Path) -> None:
    _, *words = shlex.split(command)
    if "outputs" in words and words[0] == "judge" and not (home / "outputs").exists():
        rvedit("edit", "--batch", "manifest.parquet", "--out-dir", "outputs", cwd=home, check=0)
    if words[:2] == ["prepare", "playground"]:
        words[words.index("100")] = "2"  # each takes a second at its size
    if any(word.startswith("linyq/") for word in words):
        words.append("--plan")  # its weights cannot be fetched here
    if "recipes/nano_scale.yaml" in words:
        quick = ("steps=2", "checkpoint_every=2", "optimizer.name=adamw", "model.init_from=null")
        words += [w for value in (*SMALL, *quick, f"model.vae_from={vae_run}") for w in ("--set", value)]
    with ChatServer() as server:
        words = [server.url if word.startswith("http://") else word for word in words]
        if words[0] == "caption":
            words += ["--model", "Qwen3-VL"] if "--model" not in words else []
        done = rvedit(*words, cwd=home, check=0)
    assert "it/s]" not in done.stderr, "no progress bar where there is no terminal"


@pytest.mark.slow
def test_the_snippet_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    names: dict[str, object] = {"frames": random_clip(9, 64, 64)}
    exec(BLOCKS["python"], names)
    assert names["edited"].shape[0] == 9
    with VideoReader(home / "assets" / "park.mp4") as reader:
        assert names["frame"].shape == (reader.info.height, reader.info.width, 3)
