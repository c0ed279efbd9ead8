"""`ris data list`, `ris data check` and `ris data make-shapes`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.identity import differences
from ris_pipeline.datasets import Card, check_dataset, describe_missing, find_faulty_records, load_card
from ris_pipeline.datasets.card import list_cards
from ris_pipeline.errors import RisError
from stages.bad_data import N_SHOWN, find_faults
from stages.options import StageOptions, card_of, emit, say
from stages.progress import progress


def run_list(options: StageOptions) -> None:
    """Prints name, format, splits and expected numbers of sentences of every card."""
    cards = [load_card(name) for name in list_cards()]
    lines = []
    for card in cards:
        splits = ", ".join(f"{split} {count:,}" if count else split for split, count in card.splits.items())
        lines.append(f"{card.name:<16} {card.format:<8} {splits}")
    rows = [{"name": card.name, "format": card.format, "splits": dict(card.splits)} for card in cards]
    emit(options, "\n".join(lines), rows)


def run_check(options: StageOptions, *, deep: bool = False) -> None:
    """Prints what is there of each split; RisError where files are missing or counts differ from the card.

    `deep` lists all records that cannot be used; where there are none, it opens every image and mask.
    """
    card = card_of(options)
    if deep:
        _check_records(options, card)
    checks = check_dataset(card, options.data_root)
    missing = list(dict.fromkeys(path for one in checks for path in one.missing))
    if missing:
        raise RisError(describe_missing(card, options.data_root, missing))
    lines = []
    for one in checks:
        counts = f"{one.n_images:,} images, {one.n_refs:,} refs, {one.n_expressions:,} sentences"
        expected = "any number" if one.n_expected is None else f"{one.n_expected:,}"
        lines.append(f"{card.name} {one.split}: {counts} (card: {expected})")
    faults = find_faults(options, [one.split for one in checks if one.n_refs]) if deep else []
    rows = [{**asdict(one), "missing": []} for one in checks]
    emit(options, "\n".join([*lines, *faults[:N_SHOWN]]), {"splits": rows, "unusable": faults} if deep else rows)
    for one in checks:
        if not one.ok:
            raise RisError(
                f"{card.name} {one.split}: {one.n_expressions:,} sentences where the card expects "
                f"{one.n_expected:,}; other annotation files?"
            )
    if faults:
        raise RisError(
            f"{card.name}: {len(faults):,} images and masks cannot be used{_shown(faults)}; fetch them again, or "
            "leave the images out with --skip-bad"
        )


def _check_records(options: StageOptions, card: Card) -> None:
    faults = find_faulty_records(card, options.data_root)
    if faults:
        emit(options, "\n".join(faults[:N_SHOWN]), {"splits": [], "unusable": faults})
        raise RisError(
            f"{card.name}: {len(faults):,} faults in the annotations{_shown(faults)}; mend them, then check again: "
            "images and masks were not opened"
        )


def _shown(faults: list[str]) -> str:
    return f" (the first {N_SHOWN} above)" if len(faults) > N_SHOWN else ""


def run_make_shapes(options: StageOptions) -> None:
    """Generates the data set as its card says, unless the same lies there."""
    card = card_of(options)
    if not card.generate:
        raise RisError(f"{card.name} is not a generated data set: its card has no [generate] table")
    from ris_pipeline.shapes.generate import STAMP, remove_leftovers

    folder = options.data_root / card.images.parent
    if not options.dry_run:
        remove_leftovers(folder)
    stamp = _read_stamp(folder / STAMP)
    if stamp == card.generate and not options.force:
        say(options, f"{card.name}: up to date in {folder}, same settings")
        return
    # Generating clears the folder: never one that somebody else filled.
    if folder.exists() and stamp is None and not options.force:
        raise RisError(f"{folder}: exists, but was not generated here; --force replaces it")
    changed = "; ".join(differences(stamp, card.generate)) if stamp else "not there yet"
    say(options, f"{card.name}: {'would generate' if options.dry_run else 'generating'} {folder} ({changed})")
    if not options.dry_run:
        _generate(options, card, folder)
        emit(options, str(folder), {"path": str(folder), **card.generate})


def _generate(options: StageOptions, card: Card, folder: Path) -> None:
    from ris_pipeline.shapes.generate import generate

    settings = dict(card.generate)
    with progress(options, card.name, sum(settings["n_images"].values())) as advance:
        generate(folder, **settings, workers=max(options.workers, 1), progress=lambda done, total: advance())


def _read_stamp(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
