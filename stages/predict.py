"""`ris predict`: an image and sentences → for each sentence a mask, an overlay and a map, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts import Artifact, find_latest
from ris_pipeline.errors import RisError
from stages.common import StageOptions, card_of, device_of, emit, input_of, say


def run(options: StageOptions, image: Path, texts: Sequence[str], out: Path) -> None:
    """Segment `image` by the latest Step-2, or Step-1 where there is none, and print the files written."""
    for k, text in enumerate(texts, start=1):
        if not text.strip():
            raise RisError(f"sentence {k} is empty; write what to segment, in quotes")
    if not image.is_file():
        raise RisError(f"{image}: no such image file")
    artifact = _choose(options)
    say(options, f"by {artifact.name} {artifact.digest}{' (--dry-run: nothing is written)' if options.dry_run else ''}")
    if not options.dry_run:
        files = _predict(options, artifact, image, texts, out)
        emit(options, "\n".join(path for one in files for path in (one["mask"], one["overlay"], one["map"])), files)


def _choose(options: StageOptions) -> Artifact:
    dataset = card_of(options).name
    # Not the oracle, whose labels are what the method does without.
    step2 = find_latest(options.runs, dataset, "step2", labels="pseudo")
    if step2 is not None:
        return step2
    step1 = input_of(options, "step1")
    say(options, f"{options.runs / dataset}: no finished step2 yet; by the coarser maps of step1")
    return step1


def _predict(
    options: StageOptions, artifact: Artifact, image: Path, texts: Sequence[str], out: Path
) -> list[dict[str, str]]:
    """Writes the files; for each sentence, the paths of its three."""
    import numpy as np

    from ris_pipeline.datasets.images import load_image
    from ris_pipeline.masks import colour_map, overlay_mask
    from ris_pipeline.precision import autocast
    from ris_pipeline.predict import Segmenter

    pixels = load_image(image)
    device = device_of(options)
    segmenter = Segmenter.load(artifact.path, device)
    with autocast(device, options.precision):
        predictions = segmenter(pixels, texts)
    files = []
    for k, (text, prediction) in enumerate(zip(texts, predictions, strict=True), start=1):
        if not prediction.mask.any():
            say(options, f'"{text}": nothing found, the mask is empty')
        pictures = {
            "mask": prediction.mask.astype(np.uint8) * 255,
            "overlay": overlay_mask(pixels, prediction.mask),
            "map": colour_map(prediction.map),
        }
        files.append({"sentence": text, **_save(out, f"{image.stem}-{k}", pictures)})
    return files


def _save(out: Path, stem: str, pictures: Mapping[str, Any]) -> dict[str, str]:
    """Writes each picture as <stem>-<kind>.png; {kind: path}."""
    from PIL import Image

    paths = {kind: out / f"{stem}-{kind}.png" for kind in pictures}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            Image.fromarray(pictures[kind]).save(path)
    except OSError as error:
        raise RisError(f"{out}: cannot write the pictures there: {error.strerror or error}") from error
    return {kind: str(path) for kind, path in paths.items()}
