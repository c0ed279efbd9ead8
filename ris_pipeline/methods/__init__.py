"""The methods that learn from sentences where objects are: TRIS, and those that it is compared with, a file each.

A method is one line in METHODS, one dataclass of settings in `methods.configs`, and one module. Where nothing is
trained, the module has

    load(config, device) -> Responder

and where Step-1's place is taken by a training of its own,

    build(config, weights: Path | None) -> nn.Module    of trained weights, or with what the configuration starts from
    build_task(network, config) -> Task[Batch]          its losses, optimiser and schedule
    plan(dataset, config, seed) -> Plan                 which refs stand in a batch
    wrap(network, config) -> Responder                  the trained network, as dump, score and prediction ask it

One that learns from the maps of another method, its teacher, has

    open_targets(config, dataset, store, folder, workers, advance) -> Targets

as well. What a method makes has its name in its flags; TRIS's has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import METHOD
from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.methods import configs

if TYPE_CHECKING:
    import torch

    from ris_pipeline.maps.respond import Responder


@dataclass(frozen=True, slots=True)
class Method:
    """A method, described without importing it."""

    name: str  # in flags, in the score table and as the column of the gallery
    title: str  # in tables and above its column
    module: str
    config: type[Any]  # a frozen dataclass; a card's [config.<table>] changes its values
    code_version: int  # raise it with every change after which its maps or weights would be others
    trained: bool = False
    teacher: str = ""  # the method whose maps of the train split it learns from
    paper: str = ""  # its name in the paper's tables, where it has a row there

    @property
    def is_tris(self) -> bool:
        """Whether it is the method that the others are compared with."""
        return self.name == TRIS

    @property
    def table(self) -> str:
        """The table of its settings in cards and configuration files."""
        return "step1" if self.is_tris else self.name

    @property
    def flags(self) -> dict[str, str | bool]:
        """The flags of what it makes."""
        return {} if self.is_tris else {METHOD: self.name}

    @property
    def version(self) -> str:
        """Its name and the version of its code."""
        return f"{self.name}@{self.code_version}"

    @property
    def version_input(self) -> dict[str, str]:
        """Its version as an input of what it makes. TRIS's is that of the stages."""
        return {} if self.is_tris else {METHOD: self.version}

    @property
    def implementation(self) -> Any:
        """Its module, with the functions that are named above."""
        return import_module(self.module)

    def load(self, config: Any, device: torch.device, weights: Path | None = None) -> Responder:
        """Return its responder on a device; a trained method's of the weights in a file."""
        responder: Responder
        if self.trained:
            from ris_pipeline.networks.load import freeze

            responder = self.implementation.wrap(freeze(self.implementation.build(config, weights), device), config)
        else:
            responder = self.implementation.load(config, device)
        return responder


TRIS = "tris"
METHODS = {
    method.name: method
    for method in (
        Method(TRIS, "TRIS", "ris_pipeline.methods.tris", Step1Config, 1, trained=True),
        Method("maskclip", "MaskCLIP, untrained", "ris_pipeline.methods.maskclip", configs.MaskClipConfig, 1),
        Method(
            "maskclip-trained", "MaskCLIP", "ris_pipeline.methods.maskclip_trained", configs.SupervisedConfig, 1,
            trained=True, teacher="maskclip", paper="MaskCLIP",
        ),
        Method("clip-es", "CLIP-ES, untrained", "ris_pipeline.methods.clip_es", configs.ClipEsConfig, 1),
        Method(
            "clip-es-trained", "CLIP-ES", "ris_pipeline.methods.clip_es_trained", configs.ClipEsTrainedConfig, 1,
            trained=True, teacher="clip-es", paper="CLIP-ES",
        ),
        Method("car", "CaR", "ris_pipeline.methods.car", configs.CarConfig, 1),
        Method("amr", "AMR", "ris_pipeline.methods.amr", configs.AmrConfig, 1, trained=True, paper="AMR"),
        Method(
            "groupvit", "GroupViT", "ris_pipeline.methods.groupvit", configs.GroupVitConfig, 1, trained=True,
            paper="GroupViT",
        ),
        Method("gbs", "GbS", "ris_pipeline.methods.gbs", configs.GbSConfig, 1, trained=True, paper="GbS"),
        Method("wwbl", "WWbL", "ris_pipeline.methods.wwbl", configs.WWbLConfig, 1, trained=True, paper="WWbL"),
    )
}  # fmt: skip


def list_compared() -> Iterable[Method]:
    """Return the methods that TRIS is compared with."""
    return [method for method in METHODS.values() if not method.is_tris]


def find_method(name: str) -> Method:
    """Return the method of that name; RisError, naming the nearest, for an unknown one."""
    if name not in METHODS:
        raise RisError(f"there is no method {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def method_of(artifact: Artifact) -> Method:
    """Return the method that made an artifact; RisError where it is not known here."""
    return find_method(str(artifact.manifest["flags"].get(METHOD, TRIS)))
