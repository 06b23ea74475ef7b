"""The import contract of pyproject.toml holds, and breaks where it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(root: Path) -> tuple[int, str]:
    """Run lint-imports on a copy of the packages."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    env = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    only_code = shutil.ignore_patterns("nano", "__pycache__", "*.html", "*.txt")
    for package in ("rvedit", "rvedit_cli"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=only_code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_it(copy: Path) -> None:
    code, output = lint(copy)
    assert code == 0, output


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("rvedit/pipelines/noise.py", "import rvedit.playground.world", "Editing needs neither"),
        ("rvedit/editing/config.py", "import rvedit.losses.alignment", "Editing needs neither"),
        ("rvedit/editing/config.py", "import rvedit.training.recipe", "Arrows of import go down only"),
        ("rvedit/models/routing.py", "import rvedit.io.chat.gemini", "never call a chat endpoint"),
        ("rvedit/models/routing.py", "import rvedit.pipelines.noise", "Arrows of import go down only"),
        ("rvedit/training/log.py", "import rvedit.evaluation.scores", "Arrows of import go down only"),
        ("rvedit/io/errors.py", "import rvedit_cli.console", "Only the command line"),
    ],
)
def test_an_import_against_it_fails(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    path.write_text(path.read_text().replace("from __future__ import annotations\n", "", 1) + f"\n{line}\n")
    code, output = lint(copy)
    assert code == 1, output
    assert any(contract in text and "BROKEN" in text for text in output.splitlines()), output


def test_a_package_that_is_not_listed_fails(copy: Path) -> None:
    (copy / "rvedit" / "extras").mkdir()
    (copy / "rvedit" / "extras" / "__init__.py").write_text('"""New."""\n')
    code, output = lint(copy)
    assert code == 1
    assert "extras" in output
