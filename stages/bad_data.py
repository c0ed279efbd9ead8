"""`--skip-bad` and `ris data check --deep`: images that cannot be used, found before anything is made of them.

What is left out is decided once for the whole data set, not image by image on the way: so draws, rows and a resumed
run are those of a data set without these images, and they are a part of the digest.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import make_folder, write_json
from ris_pipeline.errors import RisError
from stages.options import StageOptions, card_of, say
from stages.progress import progress

if TYPE_CHECKING:
    from ris_pipeline.datasets import Image

N_SHOWN = 10
CACHE = "images.json"  # in runs/<dataset>: {path: [bytes, time stamp, what is wrong or null]}

BadImages = list[tuple["Image", str]]  # and what is wrong with it
_last: tuple[StageOptions, BadImages] | None = None


def images_to_skip(options: StageOptions) -> BadImages:
    """The images of all splits that cannot be used, told on stderr; looked for once in a command."""
    global _last
    if _last is None or _last[0] is not options:
        bad = find_bad_images(options)
        if bad:
            names = ", ".join(image.path.name for image, _ in bad[:N_SHOWN]) + (" …" if len(bad) > N_SHOWN else "")
            say(options, f"{card_of(options).name}: {len(bad)} images cannot be used and are left out: {names}")
        _last = options, bad
    return _last[1]


def find_bad_images(options: StageOptions) -> BadImages:
    """The images of all splits that cannot be used.

    One whose size and time stamp are as at the last look is not opened again, but with --force.
    """
    from ris_pipeline.datasets import check as deep
    from ris_pipeline.datasets import list_images
    from ris_pipeline.datasets.io.files import load_json

    card = card_of(options)
    images = list_images(card, options.data_root)
    cache = options.runs / card.name / CACHE
    known: dict[str, Any] = {}
    if not options.force:
        with suppress(RisError):  # not there yet, or damaged: look again
            known = dict(load_json(cache))
    stamps = {image.path: _stamp(image.path) for image in images}
    unknown = [image for image in images if known.get(str(image.path), [])[:2] != stamps[image.path]]
    with progress(options, "images", len(images), len(images) - len(unknown)) as advance:
        faults = deep.find_bad_images(unknown, options.workers, advance)
    known |= {str(image.path): [*stamps[image.path], faults.get(image.path)] for image in unknown}
    if unknown:
        with suppress(OSError):  # runs may lie where nobody may write
            make_folder(cache.parent)
            write_json(cache, {str(image.path): known[str(image.path)] for image in images})
    return [(image, fault) for image in images if (fault := known[str(image.path)][2]) is not None]


def find_faults(options: StageOptions, splits: list[str]) -> list[str]:
    """A line for each image and mask of the splits that cannot be used, all of them opened anew."""
    from ris_pipeline.datasets import load_dataset
    from ris_pipeline.datasets.check import find_bad_masks

    faults = [fault for _, fault in find_bad_images(replace(options, force=True))]
    for split in splits:
        dataset = load_dataset(card_of(options), options.data_root, split)
        n_masks = sum(ref.segmentation is not None for ref in dataset.refs)
        with progress(options, f"masks {split}", n_masks) as advance:
            faults += find_bad_masks(dataset, options.workers, advance).values()
    return faults


def _stamp(path: Path) -> list[int | None]:
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except (OSError, ValueError):
        return [None, None]
