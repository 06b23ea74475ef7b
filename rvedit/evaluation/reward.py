"""The judge that is a reward model on this machine, with its protocol."""

from __future__ import annotations

import ast
import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvedit.evaluation.computed import ComputedJudge, Measures
from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judges import Case
from rvedit.evaluation.protocols import RubriclessProtocol
from rvedit.evaluation.request import Probe
from rvedit.evaluation.scores import Scores
from rvedit.io.chat import Journal
from rvedit.io.errors import UserError

if TYPE_CHECKING:
    from rvedit.evaluation.reward_model import RewardModel

INSTRUCTION = "{text_prompt}"


class RewardProtocol(RubriclessProtocol):
    """VEFX-Bench's protocol: scores from 1 to 4, with decimals, by VEFX-Reward."""

    name, scale = "vefx", (1, 4)

    def __init__(self, frames: FrameStore) -> None:
        super().__init__(frames)

    @property
    def axis_labels(self) -> Mapping[str, str]:
        """See `JudgeProtocol`."""
        return {"ic": "Instructional Following", "cf": "Edit Exclusivity", "vq": "Render Quality"}


class RewardJudge(ComputedJudge):
    """A reward model in VEFX-Reward's layout as judge.

    Args:
        journal, protocol, probe: see `Judge`.
        model: a folder, or an id on the Hub.
        prompt: see `RewardModel`.
        device: cpu, cuda, ...; by default CUDA if it is available.
    """

    def __init__(
        self,
        journal: Journal,
        protocol: RewardProtocol,
        model: str,
        prompt: str,
        probe: Probe = "none",
        device: str | None = None,
    ) -> None:
        from rvedit.io.chat.local import local_name

        super().__init__("reward", journal, protocol, probe, concurrency=1)
        self._name, self._path, self._prompt, self._device = local_name(model), model, prompt, device
        self._model: RewardModel | None = None
        self._lock = threading.Lock()  # the next clips are decoded for the report meanwhile

    @property
    def version(self) -> str:
        """See `ComputedJudge`."""
        return self._name

    async def check(self) -> None:
        """See `Judge`."""
        await super().check()
        from rvedit.evaluation.reward_model import RewardModel

        self._model = RewardModel(self._path, self._prompt, self._device)

    def context(self, case: Case) -> Sequence[str]:
        """See `ComputedJudge`."""
        prompt = hashlib.sha256(self._prompt.encode()).hexdigest()
        return (prompt, case.item.instruction, _downloaded_revision(self._path))

    def measure(self, case: Case) -> Measures:
        """See `ComputedJudge`."""
        assert self._model is not None, "call check() first"
        with self._lock:
            return {**self._model.score(*self.clips(case), case.item.instruction)}

    def result(self, measures: Measures) -> dict[str, Any]:
        """See `ComputedJudge`."""
        scores = (float(measures[name] or 0) for name in ("IF", "EE", "RQ"))
        return {"scores": Scores(*scores), "asked_model": self._name}


def _downloaded_revision(model: str) -> str:
    """Return the folder of the downloaded revision of an id on the Hub; empty for a folder.

    The name of a folder has a digest of its files.
    """
    from huggingface_hub import try_to_load_from_cache

    config = None if Path(model).is_dir() else try_to_load_from_cache(model, "config.json")
    return Path(config).parent.name if isinstance(config, str) else ""


def read_prompt(path: Path) -> str:
    """Return a reward model's prompt: a text file, or the string in a Python file that has the reward tokens.

    The Python file, such as VEFX-Bench's `prompt_template.py`, is parsed and not run. Raises UserError if the
    prompt lacks the instruction's place or a reward token.
    """
    from rvedit.evaluation.reward_model import REWARD_TOKENS

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            text = next((s for s in strings if isinstance(s, str) and REWARD_TOKENS[0] in s), "")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"`rubrics` {path}: cannot be read ({error}): give the prompt's file") from None
    if missing := [part for part in (INSTRUCTION, *REWARD_TOKENS) if text.count(part) != 1]:
        raise UserError(f"`rubrics` {path}: needs {missing[0]} once: give the reward model's own prompt")
    return text
