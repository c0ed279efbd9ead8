"""The settings of the compared methods: one frozen dataclass each, with the source behind every value."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from ris_pipeline.config import STRICT, Count, Natural, Select, Side


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class TrainedConfig:
    """What every method with a training of its own has, at TRIS's values where its paper has others for other data."""

    input_size: Side = 320  # pixels a side, plain resize; TRIS Table 2 gives all methods 320
    epochs: Count = 15  # an epoch visits each ref once; TRIS
    batch_size: Count = 48  # refs; TRIS
    validate: str = ""  # as Step1Config.validate
    validate_refs: Natural = 0  # as Step1Config.validate_refs
    select: Select = "last"  # as Step1Config.select
