"""The repository keeps its word: paths named exist, data is packaged, nothing is too big."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent


def tracked():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def test_every_path_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    top = {p.name for p in ROOT.iterdir()}
    words = set(re.findall(r"[\w./-]+", text))
    # Whatever begins with a top-level name is a path; runs/ and outputs are made by the reader.
    paths = {
        w.rstrip("./") for w in words if "/" in w and w.split("/")[0] in top and not w.startswith("runs/")
    }
    assert len(paths) > 5
    missing = sorted(p for p in paths if not (ROOT / p).exists())
    assert not missing


def test_only_the_embedded_weights_are_big():
    big = [n for n in tracked() if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 3_000_000]
    assert all(name.startswith("rvedit/nano/") for name in big), big


def test_embedded_weights_are_bf16_safetensors_of_at_most_40_mb():
    files = [p for p in (ROOT / "rvedit" / "nano").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 40_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jinja", ".txt", ".md"}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
            assert "BF16" in kinds, path


def test_modules_stay_short():
    for name in tracked():
        if name.startswith(("rvedit/", "rvedit_cli/")) and name.endswith(".py"):
            assert len((ROOT / name).read_text().splitlines()) <= 400, name


@pytest.mark.slow
def test_every_benchmark_can_be_imported():
    """Nothing that they import is gone; what they measure takes too long here."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
