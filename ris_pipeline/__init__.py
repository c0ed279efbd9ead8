"""Referring image segmentation without mask labels: the library behind the `ris` commands."""

__version__ = "0.1.0"
