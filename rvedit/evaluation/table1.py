"""Table 1: which of its rows have outputs, and what judging them would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rvedit.evaluation.judge import CostEstimate
from rvedit.io.errors import UserError

RECIPE = "table1.yaml"


@dataclass(frozen=True)
class Price:
    """The price of a million tokens, in any currency."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class TableRow:
    """A row of the table."""

    label: str
    folder: Path
    """Where its outputs belong."""
    model: str | None
    """What `rvedit edit --model` takes to make them; None if another repository makes them."""

    @property
    def has_outputs(self) -> bool:
        """Whether there is anything in the folder."""
        return self.folder.is_dir() and any(self.folder.iterdir())


def read_table_rows(recipe: Path, outputs: Path, only: Sequence[str] = ()) -> list[TableRow]:
    """Return the rows of recipes/table1.yaml with their folders `outputs/LABEL`; of `only`, if there are any.

    Raises UserError if the recipe is another one, a label is none of its rows, or no row has outputs.
    """
    if recipe.name != RECIPE or not recipe.is_file():
        raise UserError(f"{recipe}: is not {RECIPE}: name that of this project's recipes")
    entries: list[dict[str, Any]] = yaml.safe_load(recipe.read_text(encoding="utf-8"))["rows"]
    rows = [TableRow(row["label"], outputs / row["label"], row.get("model")) for row in entries]
    labels = [row.label for row in rows]
    if unknown := [label for label in only if label not in labels]:
        raise UserError(f"`only` {unknown[0]}: no row of the table: choose among {', '.join(labels)}")
    rows = [row for row in rows if not only or row.label in only]
    if not any(row.has_outputs for row in rows):
        raise UserError(f"{outputs}: has outputs of no row: put them into folders such as {rows[0].folder}")
    return rows


def expected_cost(estimates: Sequence[CostEstimate], prices: Mapping[str, Price]) -> dict[str, float]:
    """Return the expected cost by judge, of those that have a price; unreadable replies cost more."""
    costs = dict.fromkeys(prices, 0.0)
    for estimate in estimates:
        if price := prices.get(estimate.judge):
            costs[estimate.judge] += price.cost(estimate.prompt_tokens, estimate.completion_tokens)
    return costs


def check_cost(
    estimates: Sequence[CostEstimate], prices: Mapping[str, Price], max_cost: float | None
) -> None:
    """Raise UserError if the run would cost more than `max_cost`, or if its cost is not known."""
    if max_cost is None:
        return
    if unpriced := sorted({e.judge for e in estimates if e.requests and e.judge not in prices}):
        raise UserError(f"`max_cost`: {unpriced[0]} has no price: give one with --price {unpriced[0]}=IN/OUT")
    if (total := sum(expected_cost(estimates, prices).values())) > max_cost:
        raise UserError(
            f"`max_cost` {max_cost:g}: the run would cost about {total:.2f}: raise it, or set `limit`"
        )
