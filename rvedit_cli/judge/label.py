"""`rvedit judge label`: write a page on which people rate edits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rvedit_cli import console

_files = partial(console.option, console.FILES)


def label(
    edits: Annotated[Path, typer.Argument(metavar="OUTPUTS", help="Folder of edited clips.")],
    bench: Annotated[
        Path | None,
        _files(
            "The list of items. Default: the one that `rvedit edit --batch` wrote.", metavar="CSV|MANIFEST"
        ),
    ] = None,
    out: Annotated[Path | None, _files("The page. Default: OUTPUTS/label.html.", metavar="FILE.html")] = None,
    max_size: Annotated[
        float, _files("Megabytes of clips up to which they are embedded; else they are linked.", min=0)
    ] = 100,
    as_json: console.Json = False,
) -> None:
    """Write a page on which a person rates edits beside their sources, by mouse or keyboard.

    It opens in any browser, offline, and saves the table that `rvedit judge agreement` reads.
    """
    from rvedit.evaluation.label_page import MEGABYTE, write_label_page

    page = write_label_page(edits, bench, out or edits / "label.html", int(max_size * MEGABYTE))
    if as_json:
        console.print_json(page)
        return
    if page.missing:
        console.say(f"note: {len(page.missing)} items have no edit in {edits}, such as {page.missing[0]}")
    if page.unplayable:
        console.say(
            f"note: most browsers cannot show {len(page.unplayable)} of the clips, such as "
            f"{page.unplayable[0]}: write them as .mp4"
        )
    size = page.path.stat().st_size / MEGABYTE
    place = (
        f"{size:.1f} MB with all clips in it: it can be sent alone"
        if page.embedded
        else "it links to the clips: keep it where it is, or embed them with a larger --max-size"
    )
    typer.echo(f"{page.path}: {page.items} edits to rate; {place}")
