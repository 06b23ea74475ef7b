"""Registry of training tasks, by the `task` of a recipe.

To add one, write a class with `TrainingTask`'s methods and `costs` for the dry run, and call `register_task`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported on use, so that recipes are checked without importing the models.
TASKS = {
    "editor": "rvedit.training.editor:EditorTask",
    "distill": "rvedit.training.distill:DistillTask",
    "vae": "rvedit.training.vae:VAETask",
}
"""Module and class of each task."""


def register_task(name: str, location: str) -> None:
    """Register a task for recipes; `location` is `package.module:Class`."""
    TASKS[name] = location


def task_class(name: str) -> Any:
    """Return a task's class, a `TrainingTask` with `costs(recipe)`."""
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
