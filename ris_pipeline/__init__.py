"""Referring image segmentation without mask labels: the library behind the `ris` commands.

The chain as functions, each with the same caching and resuming as its command, and a trained network to call:

>>> from ris_pipeline import Segmenter, train_step1, dump_responses, make_pseudolabels, train_step2, score
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ris_pipeline.chain.pseudolabels import make_pseudolabels as make_pseudolabels
    from ris_pipeline.chain.responses import dump_responses as dump_responses
    from ris_pipeline.chain.scores import score as score
    from ris_pipeline.chain.train import train_step1 as train_step1
    from ris_pipeline.chain.train import train_step2 as train_step2
    from ris_pipeline.networks.load import build_step1 as build_step1
    from ris_pipeline.networks.load import build_step2 as build_step2
    from ris_pipeline.predict import Prediction as Prediction
    from ris_pipeline.predict import Segmenter as Segmenter

__version__ = "0.1.0"

_OFFERED = {
    "Prediction": "predict",
    "Segmenter": "predict",
    "build_step1": "networks.load",
    "build_step2": "networks.load",
    "dump_responses": "chain.responses",
    "make_pseudolabels": "chain.pseudolabels",
    "score": "chain.scores",
    "train_step1": "chain.train",
    "train_step2": "chain.train",
}
__all__ = list(_OFFERED)


def __getattr__(name: str) -> Any:
    """Import what is offered when it is asked for: some of it brings torch, which the commands do without."""
    if name in _OFFERED:
        return getattr(import_module(f"ris_pipeline.{_OFFERED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
