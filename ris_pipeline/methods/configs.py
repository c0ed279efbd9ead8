"""The settings of the compared methods: one frozen dataclass each, with the source behind every value."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from ris_pipeline.config import (
    STRICT,
    Count,
    Flag,
    LevelCount,
    NameOrPath,
    Natural,
    Rate,
    Select,
    Share,
    Side,
    Weight,
)


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class TrainedConfig:
    """What every method with a training of its own has, at TRIS's values where its paper has others for other data."""

    input_size: Side = 320  # pixels a side, plain resize; TRIS Table 2 gives all methods 320
    epochs: Count = 15  # an epoch visits each ref once; TRIS
    batch_size: Count = 48  # refs; TRIS
    validate: str = ""  # as Step1Config.validate
    validate_refs: Natural = 0  # as Step1Config.validate_refs
    select: Select = "last"  # as Step1Config.select


# CLIP-ES's list for COCO. A sentence has to compete with something: alone it has probability 1 everywhere.
COCO_BACKGROUND = (
    "ground, land, grass, tree, building, wall, sky, lake, water, river, sea, railway, railroad, helmet, cloud, house, "
    "mountain, ocean, road, rock, street, valley, bridge"
)


def _check_template(value: str) -> str:
    if not value.count("{}") == value.count("{") == value.count("}") == 1:
        raise PydanticCustomError("template", "should have {braces} once, where the sentence goes", {"braces": "{}"})
    return value


def _check_words(value: str) -> str:
    if not all(word.strip() for word in value.split(",")):
        raise PydanticCustomError("words", "should be words with commas between them")
    return value


Template = Annotated[str, AfterValidator(_check_template)]
Words = Annotated[str, AfterValidator(_check_words)]
Confidence = Annotated[Share, Field(ge=0.5, lt=1)]
Pools = Annotated[Count, Field(le=5)]  # of VGG-16's


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class FrozenClipConfig:
    """What the training-free methods have in common: which CLIP, and how it is asked."""

    clip: str = "ViT-B-16-quickgelu"  # open_clip model name, a folder, or "shapes"; CLIP-ES, CaR
    clip_weights: NameOrPath = "openai"  # open_clip tag or a file; None: random values, or a folder's own
    input_size: Side = 512  # pixels a side; MaskCLIP's short side, about what CLIP-ES and CaR read of COCO
    template: Template = "a clean origami {}."  # around sentences and background alike; CLIP-ES
    background: Words = COCO_BACKGROUND  # what else there may be, with commas; CLIP-ES
    threshold: Share = 0.5  # map above: the object


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class MaskClipConfig(FrozenClipConfig):
    """MaskCLIP: "Extract Free Dense Labels from CLIP" (ECCV 2022)."""

    clip: str = "RN50-quickgelu"  # MaskCLIP has it and ViT-B/16; TRIS's Step-1, which learns from it, is one
    template: Template = "{}"  # MaskCLIP averages 85 templates, made for names of classes
    denoising: Share = 0.0  # a text that is nowhere as probable is dropped; MaskCLIP 0.5, off by default
    smoothing: Share = 0.0  # a place where no text is as probable takes over from like ones; MaskCLIP 1, off by default


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class SupervisedConfig(TrainedConfig):
    """TRIS's Step-1 network that learns the masks of a teacher by cross-entropy (TRIS Table 1, †)."""

    clip: str = "RN50-quickgelu"  # as Step1Config.clip; TRIS
    clip_weights: NameOrPath = "openai"  # as Step1Config.clip_weights
    hidden: Count = 1024  # as Step1Config.hidden; TRIS
    lr: Rate = 5e-5  # AdamW, everything but the CLIP; TRIS
    backbone_lr: Weight = 5e-6  # AdamW, the CLIP; TRIS
    weight_decay: Weight = 0.01  # AdamW; TRIS
    poly_power: Weight = 0.9  # as Step1Config.poly_power; TRIS
    refs_per_image: Count = 1  # as Step1Config.refs_per_image; TRIS
    frozen_levels: LevelCount = 0  # as Step1Config.frozen_levels; TRIS
    project_from_clip: Flag = False  # as Step1Config.project_from_clip; TRIS


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class ClipEsConfig(FrozenClipConfig):
    """CLIP-ES: "CLIP is Also an Efficient Segmenter" (CVPR 2023), its values for COCO."""

    box_threshold: Share = 0.7  # of a map's maximum: the boxes around what is above are spread from; CLIP-ES


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class ClipEsTrainedConfig(SupervisedConfig):
    """Step-1 taught by CLIP-ES (TRIS Table 1, †): which of its pixels count."""

    confidence: Confidence = 0.95  # a less probable label is not learnt; CLIP-ES
    max_side: Count = 640  # pixels; as PseudolabelConfig.max_side


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class CarConfig(ClipEsConfig):
    """CaR: "CLIP as RNN" (CVPR 2024), its values for RefCOCO."""

    threshold: Share = 0.5  # of a map: what a picture is marked by; CaR
    box_threshold: Share = 0.5  # as ClipEsConfig.box_threshold; CaR
    stride: Count = 4  # pixels of input_size to a cell of the kept map: how fine its outline is
    with_rivals: Flag = False  # rivals take part: those that fit their marked pictures are background; CaR has none
    confidence: Share = 0.3  # a rival that is less probable of its marked picture is dropped; CaR
    circle: Flag = True  # mark by a red circle; CaR
    blur: Flag = False  # mark by blurring the rest; CaR's code on RefCOCO+ and RefCOCOg
    skip_last_block: Flag = False  # of the ViT that judges marked pictures; CaR's code skips it, its paper does not


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class AmrConfig(TrainedConfig):
    """AMR (AAAI 2022; released code de39168): plain CAM training of one branch, then of a second one beside it."""

    epochs: Count = 16  # of both parts together, 8 each; AMR
    cam_epochs: Count = 8  # of those, plain CAM training of the spotlight branch; AMR
    batch_size: Count = 16  # refs, each of another image; AMR
    backbone: str = "resnet50"  # of both branches: timm name, or a CLIP-ResNet's; AMR
    backbone_weights: NameOrPath = "tv_in1k"  # timm tag (torchvision's ImageNet weights), a file, or None; AMR
    clip: str = "RN50-quickgelu"  # its text encoder makes the classifiers; TRIS's, by the count of Table 2
    clip_weights: NameOrPath = "openai"  # open_clip tag or a file; None: random values, or a folder's own
    hidden: Count = 1024  # channels of a branch's last level and of a sentence's weights; by the count of Table 2
    lr: Rate = 0.01  # SGD without momentum; AMR
    new_factor: Rate = 10.0  # on the rate of what starts: the heads in the first part, then the second branch; AMR
    weight_decay: Weight = 1e-4  # AMR
    poly_power: Weight = 0.9  # lr · (1 − iteration/total)^power, in each part; AMR
    weight_recalibration: Weight = 0.05  # of the difference of the branches' maps; AMR
    threshold: Share = 0.2  # of the mean of the branches' maps, each divided by its maximum; AMR


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class GroupVitConfig(TrainedConfig):
    """GroupViT (CVPR 2022; released code 13b7861), fine-tuned. TRIS says no more of how. The sizes are its weights'."""

    ADDED: ClassVar = ("text_encoder", "clip", "clip_weights")  # options of later versions; `record_settings`

    weights: NameOrPath = "nvidia/groupvit-gcc-yfcc"  # tag, folder or file in transformers' form; None: random values
    side: Side = 224  # pixels a side that its positions are made for; GroupViT
    patch: Count = 16  # pixels a side; GroupViT
    width: Count = 384  # of the image encoder; GroupViT
    heads: Count = 6  # of the image encoder; GroupViT
    depth: Count = 3  # blocks of the stages: twice as many, as many, as many; GroupViT
    n_first_groups: Count = 64  # after the first stage; GroupViT
    n_groups: Count = 8  # after the second stage; GroupViT
    text_width: Count = 256  # GroupViT
    text_heads: Count = 4  # GroupViT
    text_layers: Count = 12  # GroupViT
    n_tokens: Count = 77  # of a sentence; GroupViT
    text_encoder: Literal["own", "clip"] = "own"  # "clip": a CLIP's, frozen, for a data set that has no GroupViT; ours
    clip: str = "RN50-quickgelu"  # whose text encoder it is where text_encoder is "clip"; ours
    clip_weights: NameOrPath = "openai"  # as Step1Config.clip_weights
    projection: Count = 4096  # hidden units of both projections; GroupViT
    embed_dim: Count = 256  # of what images and sentences are compared in; GroupViT
    lr: Rate = 5e-5  # AdamW; TRIS's, GroupViT has 1.6e-3 for batches of 4096 from the start
    weight_decay: Weight = 0.05  # AdamW, matrices alone; GroupViT
    clip_grad: Rate = 5.0  # largest norm of the gradient; GroupViT
    poly_power: Weight = 0.9  # as Step1Config.poly_power; TRIS
    threshold: Share = 0.5  # of the map, stretched from 0 to 1: the middle of its least and its largest value


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class GbSConfig(TrainedConfig):
    """GbS: "Detector-Free Weakly Supervised Grounding by Separation" (ICCV 2021)."""

    ADDED: ClassVar = ("image_encoder",)  # options of later versions; `record_settings`

    epochs: Count = 10  # GbS
    batch_size: Count = 6  # refs, of which two are blended; GbS: 3 pairs
    text_encoder: Literal["bert", "clip"] = "bert"  # GbS
    bert_weights: NameOrPath = "bert-base-uncased"  # transformers' name, a folder; None: random values of its size; GbS
    image_encoder: Literal["vgg", "clip"] = "vgg"  # GbS
    clip: str = "RN50-quickgelu"  # whose encoders they are where one is "clip"; ours
    clip_weights: NameOrPath = "openai"  # as Step1Config.clip_weights
    vgg_weights: NameOrPath = "IMAGENET1K_V1"  # torchvision's tag for vgg16_bn, a file, or None: random values; GbS
    width: Count = 64  # channels of VGG-16's first layer, an eighth of the decoder's; VGG
    levels: Pools = 5  # of VGG-16, from the deepest, that are matched with words; GbS
    lr: Rate = 1e-4  # Adam, all but the text encoder; GbS
    weight_decay: Weight = 1e-9  # Adam; GbS
    decay_every: Count = 50_000  # steps, then the learning rate is a tenth; GbS
    weight_match: Weight = 0.1  # of the matching of images and texts; GbS
    match_scale: Rate = 10.0  # of similarities before their softmax over the batch; GbS
    word_power: Rate = 5.0  # how much a sentence's similarity is that of its best word; GbS
    threshold: Share = 0.5  # of the map's maximum; ours


@dataclass(frozen=True, slots=True, config=STRICT, kw_only=True)
class WWbLConfig(TrainedConfig):
    """WWbL: "What is Where by Looking" (NeurIPS 2022), with TRIS's text encoder."""

    batch_size: Count = 32  # refs; WWbL
    refs_per_image: Count = 1  # as Step1Config.refs_per_image
    clip: str = "RN50-quickgelu"  # whose text encoder it is; the parameters in TRIS Table 2
    clip_weights: NameOrPath = "openai"  # as Step1Config.clip_weights
    aux_clip: str = "ViT-B-32-quickgelu"  # frozen CLIP that gives relevance and judges masks; WWbL
    aux_weights: NameOrPath = "openai"  # as Step1Config.clip_weights
    vgg_weights: NameOrPath = "IMAGENET1K_V1"  # torchvision's tag for vgg16, a file, or None: random values; WWbL
    width: Count = 64  # channels of VGG-16's first layer; VGG
    lr: Rate = 1.2e-3  # SGD, all but the text encoder; WWbL
    momentum: Share = 0.9  # SGD; WWbL
    weight_decay: Weight = 1e-4  # SGD; WWbL
    weight_relevance: Weight = 16.0  # of the distance to the relevance map; WWbL
    weight_fg: Weight = 0.25  # of the likeness of what the mask keeps; WWbL
    weight_bg: Weight = 0.5  # of the likeness of the rest; WWbL
    weight_area: Weight = 0.25  # of the mask's area; WWbL
    threshold: Share = 0.5  # of the map's maximum; ours
