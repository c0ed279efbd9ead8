"""`ris doctor`: a diagnosis of installation, weights, data and machine."""

from __future__ import annotations

from dataclasses import asdict

from ris_pipeline.errors import RisError
from ris_pipeline.process.workers import WORKERS
from stages.console import emit
from stages.context import Device, Output, Places, Workers, open_context


def run(
    places: Places,
    output: Output,
    device: Device = "auto",
    workers: Workers = WORKERS,
) -> None:
    """Find what is wrong here, and say what to do about it.

    Reads:    installation, device, disk; the card's weights and data set
    Writes:   stdout: a line per finding; exit status 1 where something is broken
    Example:  ris doctor --dataset refcoco --data-root /path/to/data
    """
    from ris_pipeline.doctor import diagnose

    findings = diagnose(open_context(places, output=output, device=device, workers=workers))
    emit(output, "\n".join(map(str, findings)), [asdict(finding) for finding in findings])
    broken = [finding.name for finding in findings if finding.state == "broken"]
    if broken:
        raise RisError(f"broken: {', '.join(dict.fromkeys(broken))}; the remedy is below each")
