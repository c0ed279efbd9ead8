"""`ris predict`: images and sentences → masks, overlays and maps as PNG files, and predictions.json."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import replacing, write_json
from ris_pipeline.artifacts.identity import MANIFEST, find_latest
from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.integrity import check_whole
from stages.common import device_of, input_of, resolve_config
from stages.options import StageOptions, card_of, emit, say
from stages.progress import progress

if TYPE_CHECKING:
    from ris_pipeline.predict import Pixels, Prediction, Segmenter

PREDICTIONS = "predictions.json"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of what counts as an image in a folder


def run(
    options: StageOptions,
    images: Sequence[Path],
    texts: Sequence[str],
    out: Path,
    checkpoint: Path | None = None,
    save_map: Path | None = None,
) -> None:
    """Segment the images by a checkpoint, or the latest Step-2, or Step-1 where there is none; print the files."""
    for k, text in enumerate(texts, start=1):
        if not text.strip():
            raise RisError(f"sentence {k} is empty; write what to segment, in quotes")
    named = _name_images(_find_images(images))
    checkpoint = choose_checkpoint(options, checkpoint)
    name = checkpoint or f"the CLIP of {card_of(options).name} alone"
    say(options, f"by {name}{' (--dry-run: nothing is written)' if options.dry_run else ''}")
    if not options.dry_run:
        results = _predict(options, checkpoint, named, texts, out, save_map)
        files = [one[kind] for one in results for kind in ("mask", "overlay", "map", "npy") if kind in one]
        emit(options, "\n".join([*files, str(out / PREDICTIONS)]), results)


def choose_checkpoint(options: StageOptions, chosen: Path | None) -> Path | None:
    """The `chosen` checkpoint, or the latest Step-2, or Step-1; None where the card's CLIP gives maps untrained.

    RisError where the checkpoint is missing or damaged, or there is none.
    """
    checkpoint = _find_latest(options) if chosen is None else chosen
    if checkpoint is not None and not checkpoint.exists():
        advice = "give a released .pth file or the folder of an artifact"
        raise RisError(f"{checkpoint}: no such checkpoint; {advice}{suggest_path(checkpoint)}")
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        check_whole(checkpoint)  # a flipped bit in weights raises no error: it only makes another mask
    return checkpoint


def _find_latest(options: StageOptions) -> Path | None:
    dataset = card_of(options).name
    # Not the oracle, whose labels are what the method does without.
    step2 = find_latest(options.runs, dataset, "step2", labels="pseudo")
    if step2 is not None:
        return step2.path
    if find_latest(options.runs, dataset, "step1") is None and _step1_config(options).project_from_clip:
        say(options, f"{options.runs / dataset}: nothing is trained yet; `ris train-step1` and what follows do better")
        return None
    step1 = input_of(options, "step1")
    say(options, f"{options.runs / dataset}: no finished step2 yet; by the coarser maps of step1")
    return step1.path


def _step1_config(options: StageOptions) -> Step1Config:
    return resolve_config(options, Step1Config, "step1")


def load_segmenter(options: StageOptions, checkpoint: Path | None) -> "Segmenter":
    """The network of choose_checkpoint on the device of `options`."""
    from ris_pipeline.predict import Segmenter

    device = device_of(options)
    if checkpoint is None:
        return Segmenter.untrained(_step1_config(options), device)
    return Segmenter.load(checkpoint, device)


def _find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and the images of the folders in order of their names; RisError where one cannot be read."""
    from ris_pipeline.datasets.io.files import read_size

    found = []
    for path in paths:
        inside = sorted(one for one in path.glob("*") if one.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise RisError(f"{path}: no image in this folder ({', '.join(SUFFIXES)})")
        found += inside
    for path in found:
        if not path.is_file():
            raise RisError(f"{path}: no such image file{suggest_path(path)}")
        read_size(path)  # before anything is written
    return found


def _name_images(images: Sequence[Path]) -> dict[str, Path]:
    """{what the files of an image start with: image}: its name, with suffix where two differ in nothing else."""
    stems = Counter(path.stem for path in images)
    named: dict[str, Path] = {}
    for path in images:
        name = path.stem if stems[path.stem] == 1 else path.name
        if name in named:
            raise RisError(f"{path} and {named[name]} have one name; predict them into different folders by --out")
        named[name] = path
    return named


def _predict(
    options: StageOptions,
    checkpoint: Path | None,
    named: dict[str, Path],
    texts: Sequence[str],
    out: Path,
    save_map: Path | None,
) -> list[dict[str, Any]]:
    """Writes the files; for each image and sentence, its record in predictions.json."""
    from ris_pipeline.datasets.io.images import load_image
    from ris_pipeline.process.device import autocast

    device = device_of(options)
    segmenter = load_segmenter(options, checkpoint)
    only_one = len(named) * len(texts) == 1
    # Two passes over the images, of which no more than a batch is in memory: one to segment, one to paint on.
    to_segment, to_paint = tee(load_image(path) for path in named.values())
    results = []
    with autocast(device, options.precision), progress(options, "predict", len(named)) as advance:
        found = segmenter.segment_images(to_segment, texts)
        for (name, path), predictions, pixels in zip(named.items(), found, to_paint, strict=True):
            for k, (text, prediction) in enumerate(zip(texts, predictions, strict=True), start=1):
                if not prediction.mask.any():
                    say(options, f'{path}, "{text}": nothing found, the mask is empty')
                files = _save_pictures(out, f"{name}-{k}", pixels, prediction)
                if save_map is not None:
                    to = save_map if only_one else save_map.with_stem(f"{save_map.stem}-{name}-{k}")
                    files["npy"] = _save_map(to, prediction)
                results.append({"image": str(path), "sentence": text, **_describe(prediction), **files})
            advance()
    write_json(out / PREDICTIONS, results)
    return results


def _describe(prediction: "Prediction") -> dict[str, Any]:
    from ris_pipeline.masks import encode_rle

    return {"score": round(prediction.score, 6), "segmentation": encode_rle(prediction.mask)}


def _save_pictures(out: Path, stem: str, pixels: "Pixels", prediction: "Prediction") -> dict[str, str]:
    """Writes <stem>-mask.png, <stem>-overlay.png and <stem>-map.png; {kind: path}."""
    import numpy as np
    from PIL import Image

    from ris_pipeline.masks import colour_map, overlay_mask

    pictures = {
        "mask": prediction.mask.astype(np.uint8) * 255,
        "overlay": overlay_mask(pixels, prediction.mask),
        "map": colour_map(prediction.map),
    }
    paths = {kind: out / f"{stem}-{kind}.png" for kind in pictures}
    for kind, path in paths.items():
        _write(path, partial(Image.fromarray(pictures[kind]).save, format="PNG"))
    return {kind: str(path) for kind, path in paths.items()}


def _save_map(path: Path, prediction: "Prediction") -> str:
    """Writes the map, float32 (H, W), in NumPy's format."""
    import numpy as np

    _write(path, lambda file: np.save(file, prediction.map))
    return str(path)


def _write(path: Path, save: Callable[[Any], None]) -> None:
    """Writes a file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, fsync=False) as file:
            save(file)
    except OSError as error:
        raise RisError(f"{path}: cannot write there: {error.strerror or error}") from error
