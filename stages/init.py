"""`ris init`: a card and an example, to be filled with own images and sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.console import emit
from stages.context import DataRoot, Making, Output, Places, open_context


def run(
    output: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the data set shall be called.")],
    data_root: DataRoot = Path("data"),
    force: Annotated[bool, typer.Option("--force", help="Replace the data set of that name.")] = False,
) -> None:
    """Begin a data set of own images and sentences, with an example in it.

    Reads:    nothing
    Writes:   <data root>/<name>.toml, <name>/pairs.jsonl, <name>/images/
    Example:  ris init mine
    """
    from ris_pipeline.chain.data import begin_own

    context = open_context(Places(data_root=data_root), Making(force=force), output)
    card = begin_own(context, name)
    context.say(f"put your own in place of {data_root / name}; then: ris data check --dataset {card}")
    emit(output, str(card), {"card": str(card)})
