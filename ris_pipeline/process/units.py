"""Seconds and bytes as people read them."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return such as "7.5 s", "1 min 15 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_size(n_bytes: int) -> str:
    """Return such as "12.5 kB", "1.5 MB" or "13.5 GB"."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 100_000 else f"{n_bytes / 1e3:.1f} kB"
