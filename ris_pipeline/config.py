"""The configuration of each stage: one frozen dataclass, the paper's values as defaults.

"TRIS" is "Referring Image Segmentation Using Text Supervision" (ICCV 2023) and its released code,
"IRNet" is "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from ris_pipeline.errors import RisError, did_you_mean, suggest_path


def _read_none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() in ("none", "") else value


def _read_number(value: object) -> object:
    try:
        return json.loads(value.lower()) if isinstance(value, str) else value
    except ValueError:
        return value


# `--set` gives text: "none" means None; "true", "7" and "1e-3" mean a bool and numbers.
_NUMBER = BeforeValidator(_read_number)
Flag = Annotated[bool, _NUMBER]
Count = Annotated[int, _NUMBER, Field(ge=1)]
Side = Annotated[int, _NUMBER, Field(ge=64)]  # pixels: two cells of the coarsest grid; a single cell cannot be compared
Natural = Annotated[int, _NUMBER, Field(ge=0)]
Rate = Annotated[float, _NUMBER, Field(ge=1e-12)]  # strictly positive
Weight = Annotated[float, _NUMBER, Field(ge=0)]
Share = Annotated[float, _NUMBER, Field(ge=0, le=1)]
LevelCount = Annotated[int, _NUMBER, Field(ge=0, le=4)]
Tokens = Annotated[int, _NUMBER, Field(ge=3)]  # start, end and one between them
Reach = Annotated[int, _NUMBER, Field(ge=2)]  # cells: pixels nearer than that to each other are a pair
NameOrPath = Annotated[str | None, BeforeValidator(_read_none)]  # a name, a file or a folder


def _check_select(value: str, info: ValidationInfo) -> str:
    if value != "last" and not info.data.get("validate"):
        raise PydanticCustomError("select", "should come with a split to select on, such as validate=val")
    return value


Combine = Literal["prms", "mean", "weighted"]
Select = Annotated[Literal["last", "miou", "pointit"], AfterValidator(_check_select)]

N_TOKENS = 20  # of a sentence that CLIP reads, start and end included; TRIS

# Strict: neither True nor 1.5 is an int.
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True, slots=True, config=STRICT)
class Step1Config:
    """Step-1: from images and sentences to response maps."""

    ADDED: ClassVar = ("n_tokens", "weight_overlap")  # options of later versions; `record_settings`

    clip: str = "RN50-quickgelu"  # open_clip model name, or "shapes"; TRIS implementation details
    clip_weights: NameOrPath = "openai"  # open_clip tag or a file; None: random values, or a folder's own
    image_encoder: NameOrPath = None  # timm name; None: the image encoder of `clip`; TRIS Table 3
    image_encoder_weights: NameOrPath = None  # file or timm tag; None: random values
    aux_clip: str = "ViT-B-32-quickgelu"  # frozen CLIP of the calibration loss; TRIS
    aux_weights: NameOrPath = "openai"  # as clip_weights
    n_tokens: Tokens = N_TOKENS  # of a sentence, start and end included, for both CLIPs; TRIS
    input_size: Side = 320  # pixels a side, plain resize; TRIS
    hidden: Count = 1024  # channels C_d shared by image and text; TRIS
    epochs: Count = 15  # an epoch visits each ref once; TRIS
    batch_size: Count = 48  # refs; TRIS
    lr: Rate = 5e-5  # AdamW, everything but the CLIP; TRIS
    backbone_lr: Weight = 5e-6  # AdamW, the CLIP; TRIS
    weight_decay: Weight = 0.01  # AdamW; TRIS
    poly_power: Weight = 0.9  # lr · (1 − iteration/total)^power; TRIS
    weight_cls: Weight = 5.0  # λ of the classification loss; TRIS
    weight_pos: Weight = 1.0  # of the calibration loss with the own sentence; TRIS
    weight_neg: Weight = 2.0  # of the calibration loss with the others' sentences; TRIS
    weight_overlap: Weight = 0.0  # of the overlap of the maps of an image's refs, with refs_per_image > 1; TRIS: none
    n_negatives: Count = 3  # sentences of other refs of the image; TRIS
    refs_per_image: Count = 1  # refs of an image in a batch, which share its encoding; TRIS: 1
    frozen_levels: LevelCount = 0  # lowest image-encoder levels that are not trained; TRIS trains all: 0
    project_from_clip: Flag = False  # start both projections at CLIP's own instead of random values; TRIS: False
    validate: str = ""  # split whose true boxes and masks score every epoch; "": none, no truth is read
    validate_refs: Natural = 0  # refs of that split, the first ones; 0: all
    select: Select = "last"  # the epoch whose weights count; TRIS takes the best by mIoU or PointIt


@dataclass(frozen=True, slots=True, config=STRICT)
class ResponsesConfig:
    """Response dump: the score grid of every sentence, and for each ref the grid that PRMS selects."""

    ADDED: ClassVar = ("prms_contrast",)  # options of later versions; `record_settings`

    prms: Flag = True  # select one map per ref; TRIS, positive response map selection
    prms_mask: Literal["relu", "sigmoid", "normalised"] = "relu"  # of the image; TRIS released relu
    prms_contrast: Weight = 0.0  # of a map's likeness to sentences of the image's other refs, taken off; TRIS: 0
    batch_size: Count = 48  # images encoded at once; changes only the speed


@dataclass(frozen=True, slots=True, config=STRICT)
class PseudolabelConfig:
    """Pseudo-labels: one mask per ref out of the response maps of its sentences."""

    # Options of later versions; `record_settings`.
    ADDED: ClassVar = ("combine", "compete", "rivals", "crf", "round_threshold", "pieces")

    refine: Flag = True  # IRNet's inter-pixel relations; False: threshold the map alone
    threshold: Share = 1e-9  # of the map's maximum, without refine; TRIS takes every response > 0
    combine: Combine = "prms"  # a ref's maps: PRMS's choice (TRIS), their mean, or that weighted by PRMS scores
    compete: Flag = False  # a pixel counts only for the ref of its image that responds most; TRIS: False
    rivals: Natural = 0  # sentences drawn from other images of the split, that compete as well; TRIS: 0
    crf: Flag = False  # clean the labels by a dense CRF; TRIS: False
    pieces: Flag = False  # of a label in several pieces keep the one that PRMS selects, or all; TRIS: False
    round_threshold: Share = 0.4  # of a map's maximum, in labels of a later round, which Step-2's answers make; ours
    fg_threshold: Share = 0.30  # map above: confident foreground; TRIS
    bg_threshold: Share = 0.10  # map below: confident background; TRIS
    irn_backbone: str = "resnet50"  # timm name, or a CLIP-ResNet's; IRNet
    irn_weights: NameOrPath = "tv_in1k"  # timm tag (torchvision's ImageNet weights), a file, or None; IRNet
    irnet: NameOrPath = None  # a trained IRNet: res50_irn.pth, or a folder of ours; None: train it; TRIS trains: None
    irn_images: Natural = 0  # images that IRNet learns from, the first ones; 0: all, as TRIS
    irn_epochs: Count = 3  # IRNet
    irn_batch: Count = 32  # images; IRNet
    irn_crop: Count = 512  # pixels a side; IRNet
    irn_lr: Rate = 0.1  # SGD without momentum, boundary branch; IRNet
    irn_dp_lr: Rate = 1.0  # SGD without momentum, displacement branch; IRNet
    irn_weight_decay: Weight = 1e-4  # IRNet
    radius: Reach = 10  # stride-4 cells between the two pixels of a training pair; IRNet
    walk_radius: Reach = 5  # stride-4 cells that a random-walk step stays below; IRNet
    beta: Rate = 10.0  # power of the affinity; IRNet
    log2_steps: Natural = 8  # 2^8 = 256 random-walk steps; IRNet
    background: Share = 0.25  # score of "no object" against the walked map; TRIS
    max_side: Count = 640  # pixels; larger photographs are refined at this size, COCO's and ReferIt's are not larger


@dataclass(frozen=True, slots=True, config=STRICT)
class Step2Config:
    """Step-2: the segmentation network that learns from the pseudo-labels."""

    ADDED: ClassVar = ("n_tokens", "mirror")  # options of later versions; `record_settings`

    clip: str = "RN50-quickgelu"  # as Step1Config.clip; TRIS
    clip_weights: NameOrPath = "openai"  # open_clip tag or a file; None: random values, or a folder's own
    image_encoder: NameOrPath = None  # timm name; None: the image encoder of `clip`; TRIS Table 6
    image_encoder_weights: NameOrPath = None  # file or timm tag; None: random values
    n_tokens: Tokens = N_TOKENS  # as Step1Config.n_tokens; TRIS
    input_size: Side = 320  # pixels a side, plain resize; TRIS
    encoders_from_step1: Flag = False  # start the encoders where Step-1 left them; TRIS starts from CLIP: False
    decoder_width: Count = 64  # channels of the decoder at c1; 2, 4, 8 times as many at c2, c3, c4; TRIS
    epochs: Count = 15  # an epoch visits each ref once; TRIS
    batch_size: Count = 48  # refs; TRIS
    lr: Rate = 5e-5  # AdamW, everything but the CLIP; TRIS
    backbone_lr: Weight = 5e-6  # AdamW, the CLIP; TRIS
    weight_decay: Weight = 0.01  # AdamW; TRIS
    poly_power: Weight = 0.9  # lr · (1 − iteration/total)^power; TRIS
    refs_per_image: Count = 1  # refs of an image in a batch, which share its encoding; TRIS: 1
    mirror: Flag = False  # show half of the images mirrored, left and right swapped in the words; TRIS: False
    frozen_levels: LevelCount = 0  # lowest image-encoder levels that are not trained; TRIS trains all: 0
    validate: str = ""  # as Step1Config.validate
    validate_refs: Natural = 0  # as Step1Config.validate_refs
    select: Select = "last"  # as Step1Config.select

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """The decoder's channels at c1..c4."""
        w = self.decoder_width
        return w, 2 * w, 4 * w, 8 * w


@dataclass(frozen=True, slots=True, config=STRICT)
class ScoreConfig:
    """Scores and their confidence intervals."""

    bootstrap: Count = 1000  # resamplings of the refs behind the 95 % interval
    skip_small_boxes: Share = 0.0  # share of the image; smaller boxes are left out; TRIS's evaluation on ReferIt: 0.05


@dataclass(frozen=True, slots=True, config=STRICT)
class ReportConfig:
    """The report on all that the stages made."""

    samples: Natural = 200  # sentences in the gallery, equally many of each split
    side: Annotated[int, _NUMBER, Field(ge=32)] = 240  # pixels, the longer side; 200 samples stay under 15 MB


@dataclass(frozen=True, slots=True, config=STRICT)
class ClipConfig:
    """Contrastive training of the small CLIP: a curriculum of three phases, each with its own schedule."""

    object_steps: Count = 600  # steps on 96 px pictures of one or two things
    object_decay: Count = 1000  # steps that the cosine would need to reach 0; the phase ends before
    object_batch: Count = 128  # pictures
    object_lr: Rate = 1.5e-3  # AdamW, before the cosine decay
    scene_steps: Count = 1200  # steps on 160 px pictures of one to six things, with their siblings
    scene_batch: Count = 96  # pictures, siblings counted
    scene_lr: Rate = 1e-3  # AdamW, before the cosine decay to 0
    mask_steps: Count = 1500  # steps on new scenes in which a part is faded, after a warm restart
    mask_lr: Rate = 8e-4  # AdamW, before the cosine decay to 0


CONFIGS: dict[str, type] = {
    "clip": ClipConfig,
    "step1": Step1Config,
    "responses": ResponsesConfig,
    "pseudolabels": PseudolabelConfig,
    "step2": Step2Config,
    "scores": ScoreConfig,
    "report": ReportConfig,
}

C = TypeVar("C")


def resolve(cls: type[C], *layers: Mapping[str, Any]) -> C:
    """Return the configuration `cls` with its defaults overridden by `layers`, the last one strongest.

    Values may be text, as `--set` brings them. Raises RisError for an unknown key (naming the nearest), a value of the
    wrong type and a number outside its range.
    """
    try:
        return cls(**{key: value for layer in layers for key, value in layer.items()})
    except ValidationError as error:
        raise RisError(explain_invalid(error, cls)) from error


def record_settings(config: Any) -> dict[str, Any]:
    """Return the values of a configuration as an artifact keeps them.

    Options that its class lists as ADDED are left out at their defaults: what was made before they existed stays what
    would be made now.
    """
    defaults = {field.name: field.default for field in fields(config) if field.name in getattr(config, "ADDED", ())}
    return {name: value for name, value in asdict(config).items() if name not in defaults or value != defaults[name]}


def config_from_manifest(cls: type[C], manifest: Mapping[str, Any]) -> C:
    """Return the configuration `cls` that made an artifact; what is left out in its manifest has the default.

    Settings of a compared method, which stand beside those of the stage, are passed over. Raises RisError as `resolve`.
    """
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return resolve(cls, {key: value for key, value in manifest["configuration"].items() if key in known})


def explain_invalid(error: ValidationError, cls: type[Any]) -> str:
    """Return a line on the first invalid value of a `cls`: its key, the value and what it should be."""
    unknown = "unexpected_keyword_argument"
    # A mistyped key is reported as unknown, not the other as missing.
    wrong = min(error.errors(), key=lambda single: single["type"] != unknown)
    key = ".".join(map(str, wrong["loc"]))
    if wrong["type"] == unknown:
        return f"unknown key {key!r} of {cls.__name__}{did_you_mean(key, cls.__dataclass_fields__)}"
    if wrong["type"] == "missing":
        return f"{key!r} must be given"
    return f"{key} = {wrong['input']!r}: {wrong['msg'].replace('Input should', 'should')}"


def load_config_file(path: Path, table: str, known: Collection[str]) -> dict[str, Any]:
    """Return one table of the TOML file `path`, empty where it has none; `known`: the names that a table may have."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RisError(f"{path}: cannot read the configuration file: {error.strerror}{suggest_path(path)}") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path}: not a TOML file: {error}") from error
    for name, values in tables.items():
        if name not in known:
            raise RisError(f"{path}: unknown table [{name}]{did_you_mean(name, known)}; a table per stage or method")
        if not isinstance(values, dict):
            raise RisError(f"{path}: {name} must be a table: write [{name}] and the keys below it")
    return dict(tables.get(table, {}))


def find_preset(name: str) -> Path:
    """Return the configuration file of a shipped preset. Raises RisError, naming the nearest, where there is none."""
    folder = Path(__file__).parent / "presets"
    if name not in (known := sorted(path.stem for path in folder.glob("*.toml"))):
        raise RisError(f"there is no preset {name!r}{did_you_mean(name, known)}")
    return folder / f"{name}.toml"


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Return {key: value} of `key=value` strings, the last one of a key winning."""
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise RisError(f"--set {assignment}: write --set key=value")
        values[key.strip()] = value.strip()
    return values
