"""Images and sentences → masks, overlays and maps as PNG files, and predictions.json."""

from __future__ import annotations

import glob
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import replacing, write_json
from ris_pipeline.artifacts.layout import TRAIN_SPLIT
from ris_pipeline.chain.checkpoints import choose_checkpoint, load_segmenter
from ris_pipeline.chain.context import Context
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.own import SUFFIXES
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.methods import TRIS
from ris_pipeline.process.ranks import agree, gather, in_turn, joined, share

if TYPE_CHECKING:
    import torch

    from ris_pipeline.arrays import Pixels
    from ris_pipeline.predict import Prediction

PREDICTIONS = "predictions.json"
BATCH_SIZE = 8  # images that are encoded together


@dataclass(frozen=True, slots=True)
class Predictions:
    """What was written."""

    records: Sequence[Mapping[str, Any]] = ()  # one of each image and sentence
    files: Sequence[str] = ()
    failure: str | None = None  # a line on the images that could not be read; None where all could


@dataclass(frozen=True, slots=True)
class _Job:
    """An image, its sentences, and for each of them the beginning of the names of its files."""

    image: Path
    sentences: tuple[str, ...]
    stems: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    """What has been found of a job; `failure` says why its image cannot be read."""

    records: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failure: str | None = None


@joined()
def predict_files(
    context: Context,
    wanted: Sequence[tuple[Path, Sequence[str]]],
    out: Path,
    *,
    checkpoint: Path | None = None,
    method: str = TRIS,
    round: int | None = None,
    save_map: Path | None = None,
    upright: bool = True,
    test_time: Sequence[str] = (),
) -> Predictions:
    """Segment what sentences name in images, write it below `out`, and return what was written.

    `wanted`: files and folders, each with its sentences. `checkpoint`, `method`, `round`: as of `choose_checkpoint`.
    `save_map`: a .npy file for the map too. `upright`: turn photographs as their EXIF data say. `test_time`: some of
    `scoring.rows.TEST_TIME`, which the records name. Raises RisError where an image or a checkpoint is missing; an
    image that cannot be read is in `failure`.
    """
    requests, checkpoint = agree(
        lambda: (_list_requests(context, wanted), choose_checkpoint(context, checkpoint, method, round))
    )
    untrained = "the CLIP" if method == TRIS else method
    name = checkpoint or f"{untrained} of {context.card.name} alone, untrained"
    context.say(f"by {name}{' (--dry-run: nothing is written)' if context.dry_run else ''}")
    if context.dry_run:
        return Predictions()
    written = agree(lambda: _Written(out))
    jobs = [_Job(path, texts, tuple(written.name(path, text) for text in texts)) for path, texts in requests]
    agree(lambda: _remove_left(out, save_map, jobs))
    own = _predict(context, checkpoint, method, jobs, out, save_map, test_time, upright=upright)
    by_job = {job: found for part in gather(own) for job, found in part.items()}
    ordered = [by_job[job] for job in jobs if job in by_job]
    for remark in (remark for found in ordered for remark in found.remarks):
        context.say(remark)
    failures = [found.failure for found in ordered if found.failure is not None]
    origin = {"network": str(name), **({"test_time": list(test_time)} if test_time else {})}
    records = [{**record, **origin} for found in ordered for record in found.records]
    files = [record[kind] for record in records for kind in ("mask", "overlay", "map", "npy") if kind in record]
    if lost := next((file for file in files if not Path(file).exists()), None):
        raise RisError(f"{lost}: not on this machine; on several machines --out has to be one shared folder")
    if records:
        written.add(records)
    summary = f"{len(failures)} of {len(requests)} images could not be read: {'; '.join(failures)}"
    return Predictions(records, [*files, str(written.path)] if records else (), summary if failures else None)


def _list_requests(
    context: Context, wanted: Sequence[tuple[Path, Sequence[str]]]
) -> list[tuple[Path, tuple[str, ...]]]:
    """Return each image with its sentences, once."""
    requests = [(path, tuple(texts)) for image, texts in wanted for path in _find_images(context, [image])]
    return list(dict.fromkeys(requests))


def _find_images(context: Context, paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the images of the folders sorted by name. Raises RisError where one is missing."""
    found = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.glob("*") if not file.name.startswith("."))
            inside = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
            if not inside:
                raise RisError(f"{path}: no image in this folder ({', '.join(SUFFIXES)})")
            if len(inside) < len(files):
                context.say(f"{path}: {len(files) - len(inside)} other files and folders are ignored")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise RisError(f"{path}: no such image file{suggest_path(path)}")
    return list(dict.fromkeys(found))


class _Written:
    """The predictions in <out>/, of this call and of earlier ones: predictions.json, and the names in use."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / PREDICTIONS
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            records = load_json(self.path)
            if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
                raise RisError(f"{self.path}: not written by `ris predict`; choose another --out")
            self.records = records
        # {beginning of the file names: (image, sentence)}
        self.owner = {
            Path(str(record.get("mask"))).name.removesuffix("-mask.png"): (record.get("image"), record.get("sentence"))
            for record in self.records
        }
        self.images = {stem.rpartition("-")[0]: owner[0] for stem, owner in self.owner.items()}

    def name(self, image: Path, sentence: str) -> str:
        """Return the beginning of the file names of an image and sentence, different from that of any other."""
        own = (str(image), sentence)
        prefix = next(name for name in _names_of(image) if self.images.get(name, own[0]) == own[0])
        k = next(k for k in itertools.count(1) if self.owner.get(f"{prefix}-{k}", own) == own)
        self.owner[f"{prefix}-{k}"] = own
        self.images[prefix] = own[0]
        return f"{prefix}-{k}"

    def add(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Add the results to predictions.json, in place of earlier records of the same image and sentence."""
        new = {(record["image"], record["sentence"]) for record in results}
        kept = [record for record in self.records if (record.get("image"), record.get("sentence")) not in new]
        write_json(self.path, [*kept, *results])


def _names_of(image: Path) -> Iterator[str]:
    """Yield names for an image's files, the shortest first: its stem, its name, and numbered names."""
    yield image.stem
    yield image.name
    yield from (f"{image.name}-{n}" for n in itertools.count(2))


def _remove_left(out: Path, save_map: Path | None, jobs: Sequence[_Job]) -> None:
    """Remove what a killed run of the same command had begun to write."""
    stems = {stem for job in jobs for stem in job.stems}
    left = [path for path in out.glob("*.new") if path.name.rpartition("-")[0] in stems or PREDICTIONS in path.name]
    if save_map is not None:
        left += save_map.parent.glob(f"{glob.escape(save_map.stem)}*{glob.escape(save_map.suffix)}.*.new")
    for path in left:
        path.unlink(missing_ok=True)


def _predict(
    context: Context,
    checkpoint: Path | None,
    method: str,
    jobs: Sequence[_Job],
    out: Path,
    save_map: Path | None,
    test_time: Sequence[str],
    *,
    upright: bool,
) -> dict[_Job, _Found]:
    """Write the files of the jobs that fall to this process, and return what has been found of each."""
    from ris_pipeline.datasets.io.files import read_remark
    from ris_pipeline.datasets.io.images import load_image
    from ris_pipeline.maps.at_test_time import N_DRAWN, apply_test_time
    from ris_pipeline.maps.compete import draw_sentences
    from ris_pipeline.process.device import autocast

    segmenter = in_turn(lambda: load_segmenter(context, checkpoint, method))
    if test_time:
        segmenter.responder = apply_test_time(
            segmenter.responder, test_time, lambda: draw_sentences(context.open_dataset(TRAIN_SPLIT), N_DRAWN, 0)
        )
    for line in segmenter.describe_unread(list(dict.fromkeys(text for job in jobs for text in job.sentences))):
        context.say(line)
    only_one = sum(len(job.sentences) for job in jobs) == 1
    by_job: dict[_Job, _Found] = {}
    waiting: deque[tuple[_Job, Pixels]] = deque()  # read but not yet segmented: a batch

    def read(batches: Iterable[Sequence[_Job]]) -> Iterator[list[Pixels]]:
        for batch in batches:
            for job in batch:
                found = by_job[job] = _Found()
                try:
                    if remark := read_remark(job.image):
                        found.remarks.append(remark)
                    waiting.append((job, load_image(job.image, upright=upright)))
                except RisError as error:
                    found.failure = str(error)
                    advance(1)
            yield [pixels for _, pixels in waiting]

    with (
        autocast(context.device, context.precision),
        context.progress("predict", len(jobs)) as advance,
        warnings.catch_warnings(action="ignore", category=UserWarning),  # said above
    ):
        for texts, batches in itertools.groupby(share(_list_batches(jobs)), key=lambda batch: batch[0].sentences):
            for predictions in segmenter.segment_batches(read(batches), texts):
                job, pixels = waiting.popleft()
                found = by_job[job]
                improved = _improve(predictions, texts, pixels, test_time, context.device)
                for text, stem, prediction in zip(texts, job.stems, improved, strict=True):
                    if not prediction.mask.any():
                        found.remarks.append(f'{job.image}, "{text}": nothing found, the mask is empty')
                    files = _save_pictures(out, stem, pixels, prediction)
                    if save_map is not None:
                        to = save_map if only_one else save_map.with_stem(f"{save_map.stem}-{stem}")
                        files["npy"] = _save_map(to, prediction)
                    found.records.append({"image": str(job.image), "sentence": text, **_describe(prediction), **files})
                advance(1)
    return by_job


def _list_batches(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Return the jobs in batches of the same sentences: the same ones for any number of processes."""
    batches = []
    for _, group in itertools.groupby(jobs, key=lambda job: job.sentences):
        same = list(group)
        batches += [same[k : k + BATCH_SIZE] for k in range(0, len(same), BATCH_SIZE)]
    return batches


def _improve(
    predictions: Sequence[Prediction], sentences: Sequence[str], pixels: Pixels, test_time: Sequence[str],
    device: torch.device,
) -> list[Prediction]:  # fmt: skip
    """Return the predictions about an image with what their masks are after the competition and the dense CRF."""
    import numpy as np

    from ris_pipeline.maps.compete import separate_masks
    from ris_pipeline.refine.masks import clean_masks
    from ris_pipeline.refine.mean_field import refine_on

    masks = np.stack([prediction.mask for prediction in predictions])
    if "compete" in test_time:
        masks = separate_masks(masks, np.stack([prediction.map for prediction in predictions]), sentences)
    if "crf" in test_time:
        masks = clean_masks(pixels, masks, refine_on(device))
    return [replace(prediction, mask=mask) for prediction, mask in zip(predictions, masks, strict=True)]


def _describe(prediction: Prediction) -> dict[str, Any]:
    from ris_pipeline.datasets.io.segmentations import encode_rle

    return {"score": round(prediction.score, 6), "segmentation": encode_rle(prediction.mask)}


def _save_pictures(out: Path, stem: str, pixels: Pixels, prediction: Prediction) -> dict[str, str]:
    """Write <stem>-mask.png, <stem>-overlay.png and <stem>-map.png; return {kind: path}."""
    import numpy as np
    from PIL import Image

    from ris_pipeline.pictures import colour_map, overlay_mask

    pictures = {
        "mask": prediction.mask.astype(np.uint8) * 255,
        "overlay": overlay_mask(pixels, prediction.mask),
        "map": colour_map(prediction.map),
    }
    paths = {kind: out / f"{stem}-{kind}.png" for kind in pictures}
    for kind, path in paths.items():
        _write(path, partial(Image.fromarray(pictures[kind]).save, format="PNG"))
    return {kind: str(path) for kind, path in paths.items()}


def _save_map(path: Path, prediction: Prediction) -> str:
    """Write the map, float32 (H, W), in NumPy's format, and return the path."""
    import numpy as np

    _write(path, lambda file: np.save(file, prediction.map))
    return str(path)


def _write(path: Path, save: Callable[[Any], None]) -> None:
    """Write a file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, fsync=False) as file:
            save(file)
    except OSError as error:
        raise RisError(f"{path}: cannot write there: {error.strerror or error}") from error
