"""Judges from the options of `rvedit judge`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvedit.io.errors import UserError, check_choice
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.evaluation.frames import FrameStore
    from rvedit.evaluation.judges import Judge
    from rvedit.evaluation.protocols import JudgeProtocol
    from rvedit.io.chat import Journal

CHAT_JUDGES = ("qwen", "gemini")
JUDGES = (*CHAT_JUDGES, "reference", "reward", "measures")
MEASURES = "measures"
PROTOCOLS = ("paper", "openve", "refvie", "checklist")


def check_model_options(
    names: list[str], model: str | None, base_url: str | None, local: str | None, device: str | None
) -> None:
    """Raise UserError for options of a model that none of the judges calls."""
    chat_judges = [name for name in names if name in CHAT_JUDGES]
    if model and len(chat_judges) != 1:
        raise UserError("--model: is for one chat judge: leave it out, or run one --judge at a time")
    if base_url and not chat_judges:
        raise UserError("--base-url: needs --judge qwen or gemini")
    if local and not {"qwen", "reward"} & {*names}:
        raise UserError("--local: needs --judge qwen or reward")
    if "reward" in names and not local:
        raise UserError("--judge reward: needs --local DIR, a reward model such as VEFX-Reward-4B")
    console.check_local(local, base_url or model, device)


def sampling_overrides(
    names: list[str], max_tokens: int | None, extra: str | None, local: str | None
) -> dict[str, Any]:
    """Return the changes of the judges' sampling. Raises UserError if none of the judges can use them."""
    chat_judges = [name for name in names if name in CHAT_JUDGES]
    if max_tokens and not chat_judges:
        raise UserError("--max-tokens: needs --judge qwen or gemini")
    if extra and len(chat_judges) != 1:
        raise UserError("--extra: is for one chat judge: leave it out, or run one --judge at a time")
    return {"max_tokens": max_tokens, "extra": console.extra_body(extra, local)}


def batch_settings(names: list[str], local: str | None, concurrency: int | None) -> dict[str, Any]:
    """Return the settings of judges with a batch API.

    Raises UserError if none of the judges has one, or for a `concurrency`.
    """
    from rvedit.io.chat import RetryPolicy
    from rvedit.io.chat.batches import MAX_REQUESTS

    if local or not {*names} & {*CHAT_JUDGES}:
        raise UserError("--batch-api: needs --judge qwen or gemini, without --local")
    if concurrency:
        raise UserError("--concurrency: has no meaning with --batch-api, which sends jobs: leave one out")
    # A retry is in the next job, hours later, and all requests of a job wait at the same time.
    return {"batch_api": True, "concurrency": MAX_REQUESTS, "policy": RetryPolicy(total=math.inf)}


def protocol_name(names: list[str], protocol: str, rubrics: Path | None, questions: Path | None) -> str:
    """Return the protocol of a run. Raises UserError for options that do not go together."""
    check_choice("--protocol", protocol, PROTOCOLS)
    for name in names:
        check_choice("--judge", name, JUDGES)
    if (protocol == "checklist") != (questions is not None):
        raise UserError("--protocol checklist and --questions CSV go together")
    if "reward" in names:
        if {*names} - {"reward", "measures"} or protocol != "paper":
            raise UserError(
                "--judge reward: has a protocol of its own: leave out --protocol and other judges"
            )
        if rubrics is None:
            raise UserError("--judge reward: needs --rubrics FILE, the reward model's prompt")
        return "vefx"
    if (protocol in ("openve", "refvie")) != (rubrics is not None):
        raise UserError(
            "--protocol openve or refvie and --rubrics DIR go together: rvedit does not include their rubrics"
        )
    return MEASURES if names == [MEASURES] else protocol


def build_protocol(
    name: str, rubrics: Path | None, questions: Path | None, journal: Journal, frames: FrameStore
) -> JudgeProtocol:
    """Return a protocol by its name."""
    from rvedit.evaluation import protocols

    if name == MEASURES:
        return protocols.MeasuresProtocol(frames)
    if name == "vefx":
        from rvedit.evaluation.reward import RewardProtocol

        return RewardProtocol(frames)
    if questions:
        from rvedit.evaluation.checklist import ChecklistProtocol, read_questions

        return ChecklistProtocol(read_questions(questions), frames)
    if rubrics is None:
        return protocols.PaperProtocol(frames)
    kind = protocols.RefVIEProtocol if name == "refvie" else protocols.OpenVEProtocol
    return kind(rubrics, journal, frames)


def build_judge(
    name: str,
    journal: Journal,
    protocol: JudgeProtocol,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    qwen: dict[str, Any],
    gemini: dict[str, Any],
    prompt: Path | None = None,
) -> Judge:
    """Return a judge; `settings` are those of all judges, `qwen` and `gemini` the options of one model.

    `overrides` changes the sampling of a chat judge, `prompt` is the file of a reward model's prompt.
    """
    from rvedit.evaluation import judges
    from rvedit.evaluation.request import JudgeSettings

    if name == "reward":
        from rvedit.evaluation.reward import RewardJudge, RewardProtocol, read_prompt

        assert isinstance(protocol, RewardProtocol)
        assert prompt is not None
        text = read_prompt(prompt)
        return RewardJudge(journal, protocol, qwen["local"], text, settings["probe"], qwen["device"])
    if name == MEASURES:
        try:
            from rvedit.evaluation.measures_judge import MeasuresJudge
        except ImportError:
            raise UserError("--judge measures: OpenCV is missing: pip install 'rvedit[judge]'") from None
        return MeasuresJudge(journal, protocol, settings["probe"])
    if name == "reference":
        try:
            from rvedit.evaluation.reference import ReferenceJudge
        except ImportError:
            raise UserError("--judge reference: scipy is missing: pip install 'rvedit[judge]'") from None
        if protocol.name != "paper":
            raise UserError("--judge reference: supports --protocol paper only")
        return ReferenceJudge(journal, protocol, settings["probe"])
    sampling = judges.QWEN_SAMPLING if name == "qwen" else judges.GEMINI_SAMPLING
    chat_settings = JudgeSettings(sampling.overridden(**overrides), **settings)
    if name == "qwen":
        return judges.qwen_judge(journal, protocol, chat_settings, **qwen)
    return judges.gemini_judge(journal, protocol, chat_settings, **gemini)
