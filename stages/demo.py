"""`ris demo`: a page in the browser: drop an image, write sentences, see and compare their masks and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.console import emit
from stages.context import Device, DryRun, Making, Output, Places, RawOrientation, open_context


def run(
    places: Places,
    output: Output,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    checkpoint: Annotated[Path | None, typer.Option(help="Use this instead of the latest Step-2.")] = None,
    raw_orientation: RawOrientation = False,
    device: Device = "auto",
    dry_run: DryRun = False,
) -> None:
    """Serve a page: drop an image, write sentences, compare.

    Reads:    step2, or step1 where there is no step2, or --checkpoint
    Writes:   stdout: the page's address; nothing on the disk
    Example:  ris demo --port 8080
    """
    from ris_pipeline.chain.checkpoints import choose_checkpoint
    from ris_pipeline.demo import build_demo

    context = open_context(places, Making(dry_run=dry_run), output, device=device)
    chosen = choose_checkpoint(context, checkpoint)
    if context.dry_run:
        context.say(f"would serve {chosen or 'the CLIP alone'} on {host}:{port}")
        return
    demo = build_demo(context, host, port, chosen, upright=not raw_orientation)
    if not demo.is_local:
        context.say("anyone who reaches this computer can use the page: it asks for no password")
    context.say("Ctrl-C stops the demo")
    emit(output, demo.url, {"url": demo.url, "checkpoint": str(chosen) if chosen else None})
    demo.run()
