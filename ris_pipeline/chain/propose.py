"""Class-agnostic masks of the images of train, by a SAM of transformers: the files that `maps.proposals` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.layout import TRAIN_SPLIT
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import RisError

if TYPE_CHECKING:
    from ris_pipeline.datasets.records import Image


def propose(data: Context | Card | Path | str, out: Path, sam: str, points: int, **places: Unpack[Places]) -> int:
    """Write <out>/<name of the image's file>.json for each image of train that has none; return how many were written.

    `sam`: a SAM in transformers' form, as a folder or a tag of the Hugging Face hub; only safetensors are read. It is
    asked at `points`×`points` points of an image, by the mask-generation pipeline of transformers and its thresholds.
    Raises RisError where transformers is not installed, the SAM cannot be read, or two images have one name.
    """
    from ris_pipeline.maps.proposals import proposals_path

    context = open_context(data, **places)
    images = context.open_dataset(TRAIN_SPLIT).images.values()
    by_path = {proposals_path(out, image): image for image in images}
    if len(by_path) < len(images):
        raise RisError(f"{context.card.name}: two images of train have one file name, and would share their proposals")
    missing = {path: image for path, image in by_path.items() if context.force or not path.is_file()}
    context.say(f"{out}: proposals of {len(missing):,} of {len(by_path):,} images are to be made, by {sam}")
    if context.dry_run or not missing:
        return 0
    generator = _load_generator(sam, context)
    out.mkdir(parents=True, exist_ok=True)
    with context.console.progress("propose", len(by_path), len(by_path) - len(missing)) as advance:
        for path, image in missing.items():
            write_json(path, _propose(generator, image, points))
            advance()
    return len(missing)


def _load_generator(sam: str, context: Context) -> Any:
    """Return the mask-generation pipeline of transformers."""
    from ris_pipeline.networks.weights.extra import import_transformers

    transformers = import_transformers("sam")
    try:
        return transformers.pipeline(
            "mask-generation", model=sam, device=context.device, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # whatever the network, the hub, the disk or the reader may raise
        reason = str(error).partition("\n")[0][:200]
        raise RisError(
            f"{sam}: no SAM in transformers' form with safetensors ({reason}); give a folder that holds one, or a tag "
            "of the hub such as facebook/sam-vit-base"
        ) from error


def _propose(generator: Any, image: Image, points: int) -> list[dict[str, Any]]:
    """Return the proposals of an image, each with its run lengths and the IoU that SAM expects of it."""
    import PIL.Image

    from ris_pipeline.datasets.io.images import load_image
    from ris_pipeline.datasets.io.segmentations import encode_rle

    found = generator(PIL.Image.fromarray(load_image(image)), points_per_crop=points)
    return [
        {"segmentation": encode_rle(mask.numpy()), "predicted_iou": round(float(score), 4)}
        for mask, score in zip(found["masks"], found["scores"], strict=True)
    ]
