"""`--price JUDGE=IN/OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.evaluation.table1 import Price

Prices = Annotated[
    list[str] | None,
    console.option(
        "Requests",
        "Price of a million prompt and completion tokens of a judge, such as qwen=0.2/1.2. Repeatable.",
        "--price",
        metavar="JUDGE=IN/OUT",
    ),
]


def read_prices(texts: Sequence[str] | None, names: Sequence[str]) -> dict[str, Price]:
    """Return the prices by judge. Raises UserError for other forms, and for judges that are not asked."""
    from rvedit.evaluation.table1 import Price

    prices = {}
    for text in texts or ():
        name, _, amounts = text.partition("=")
        if name not in names:
            raise UserError(f"--price {text}: {name} is not asked: choose one of {', '.join(names)}")
        try:
            prompt, completion = (float(amount) for amount in amounts.split("/"))
        except ValueError:
            prompt = completion = -1.0
        if min(prompt, completion) < 0:
            raise UserError(f"--price {text}: give JUDGE=IN/OUT, such as qwen=0.2/1.2")
        prices[name] = Price(prompt, completion)
    return prices
