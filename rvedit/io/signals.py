"""Signals that stop a command: Ctrl-C, and those of schedulers, `kill` and terminals that close."""

from __future__ import annotations

import signal
from types import FrameType

_received: list[int] = []


def stop_signals() -> list[int]:
    """Return the signals that stop a run; SIGHUP is none under `nohup`, which ignores it, and on Windows."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def stop_as_by_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: by default they end a process without any cleaning up."""
    for number in stop_signals():
        if number != signal.SIGINT:
            signal.signal(number, _interrupt)


def exit_code() -> int:
    """Return the exit code of an interrupted command: 128 + the number of the signal."""
    return 128 + (_received or [signal.SIGINT])[0]


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    for other in stop_signals():  # a second one must not disturb the cleaning up; Ctrl-C still may
        if other != signal.SIGINT:
            signal.signal(other, signal.SIG_IGN)
    handler = signal.getsignal(signal.SIGINT)  # asyncio, for one, has its own
    if not callable(handler):  # a shell's background jobs ignore Ctrl-C
        handler = signal.default_int_handler
    handler(signal.SIGINT, frame)
