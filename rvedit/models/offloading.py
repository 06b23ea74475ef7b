"""Modules that wait on the CPU until they are needed."""

from __future__ import annotations

from typing import Any


def onload(module: Any) -> None:
    """Bring a module whose parts are called one by one to where it computes, if it is offloaded.

    Accelerate's hooks watch a module's own `forward`; diffusers' `encode` and `decode` do the same as this.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
