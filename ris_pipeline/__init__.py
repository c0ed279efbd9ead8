"""Referring image segmentation without mask labels: the library behind the `ris` commands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ris_pipeline.predict import Prediction as Prediction
    from ris_pipeline.predict import Segmenter as Segmenter

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Segmenter and Prediction, imported when they are asked for: they bring torch, which the commands do without."""
    if name in ("Prediction", "Segmenter"):
        from ris_pipeline import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
