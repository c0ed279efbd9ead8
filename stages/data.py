"""`ris data list`, `ris data check` and `ris data make-shapes`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.identity import differences
from ris_pipeline.datasets import Card, check_dataset, describe_missing, load_card
from ris_pipeline.datasets.card import list_cards
from ris_pipeline.datasets.check import Check, check_contents
from ris_pipeline.datasets.check import write_exclude as save_exclude
from ris_pipeline.datasets.load import read_exclude
from ris_pipeline.datasets.records import Fault
from ris_pipeline.errors import RisError
from stages.options import StageOptions, card_of, emit, say
from stages.progress import progress

N_TOKENS = 20  # of a sentence that CLIP reads here, start and end included
N_SHOWN, N_NAMED = 10, 5  # faults and names of a kind on the screen; --json has all


def run_list(options: StageOptions) -> None:
    """Prints name, format, splits and expected numbers of sentences of every card."""
    cards = [load_card(name) for name in list_cards()]
    lines = []
    for card in cards:
        splits = ", ".join(f"{split} {count:,}" if count else split for split, count in card.splits.items())
        lines.append(f"{card.name:<16} {card.format:<8} {splits}")
    rows = [{"name": card.name, "format": card.format, "splits": dict(card.splits)} for card in cards]
    emit(options, "\n".join(lines), rows)


def run_check(options: StageOptions, *, deep: bool = False, write_exclude: Path | None = None) -> None:
    """Prints what is there of each split, and all that cannot be used or looks odd; RisError where anything is wrong.

    `deep` opens every image and mask too. `write_exclude`: a file below the data root, for the card's `exclude`.
    """
    card = card_of(options)
    check = check_dataset(card, options.data_root)
    if check.absent:
        raise RisError(describe_missing(card, options.data_root, check.absent))
    if deep:
        with progress(options, "images", len(check.images)) as advance:
            check_contents(check, options.data_root / card.images, options.workers, advance)
    sentences = [e.sentence for dataset in check.datasets for ref in dataset.refs for e in ref.expressions]
    if cut := _find_cut(list(dict.fromkeys(sentences))):
        check.remarks[f"sentences longer than the {N_TOKENS} tokens that CLIP reads: their end is cut"] = cut
    lines = []
    for split in check.splits:
        counts = f"{split.n_images:,} images, {split.n_refs:,} refs, {split.n_expressions:,} sentences"
        expected = "any number" if split.n_expected is None else f"{split.n_expected:,}"
        lines.append(f"{card.name} {split.split}: {counts} (card: {expected})")
    for remark, names in check.remarks.items():
        lines.append(f"note: {remark}{_shorten(names)}")
    for kind, faults in check.faults.items():
        lines.append(f"{len(faults):,} {kind}:")
        lines += [f"  {fault.text}" for fault in faults[:N_SHOWN]]
        lines += [f"  … {len(faults) - N_SHOWN:,} more, all with --json"] if len(faults) > N_SHOWN else []
    emit(options, "\n".join(lines), {
        "splits": [asdict(split) for split in check.splits],
        "faults": {kind: [fault.text for fault in faults] for kind, faults in check.faults.items()},
        "remarks": check.remarks,
    })  # fmt: skip
    if write_exclude is not None:
        before = read_exclude(options.data_root / card.exclude) if card.exclude else ()
        n = save_exclude(options.data_root / write_exclude, check, before)
        say(options, f'{options.data_root / write_exclude}: {n:,} names; in the card: exclude = "{write_exclude}"')
    if check.faults:
        raise RisError(_summarise(card, [fault for faults in check.faults.values() for fault in faults], check))


def _find_cut(sentences: list[str]) -> list[str]:
    # A token is a byte at least: where no sentence can be too long, torch need not be imported.
    if not any(len(sentence.encode("utf-8", "replace")) > N_TOKENS - 2 for sentence in sentences):
        return []
    from ris_pipeline.networks.clip import find_cut

    return find_cut(sentences, N_TOKENS)


def _summarise(card: Card, faults: list[Fault], check: Check) -> str:
    """The line with which a check ends that found faults."""
    if len(faults) == 1:
        line = faults[0].text
    else:
        line = f"{card.name}: " + ", ".join(f"{len(found):,} {kind}" for kind, found in check.faults.items())
    if any(fault.names for fault in faults):
        return (
            f"{line}; mend or fetch again what is wrong, or leave it out: --write-exclude FILE writes the card's list"
        )
    return line


def _shorten(names: list[str]) -> str:
    if not names:
        return ""
    more = f" … ({len(names):,} in all)" if len(names) > N_NAMED else ""
    return ": " + ", ".join(names[:N_NAMED]) + more


def run_make_shapes(options: StageOptions) -> None:
    """Generates the data set as its card says, unless the same lies there."""
    card = card_of(options)
    if not card.generate:
        raise RisError(f"{card.name} is not a generated data set: its card has no [generate] table")
    from ris_pipeline.shapes.generate import STAMP, remove_leftovers

    _check_places(card)
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


def _check_places(card: Card) -> None:
    """RisError where the card looks for the generated files elsewhere than they are written."""
    folder = card.images.parent
    right = {
        "partition": ("shapes", card.partition),
        "images": (str(folder / "images"), str(card.images)),
        "annotations": (str(folder / "refer" / str(card.generate.get("variant"))), str(card.annotations)),
    }
    for key, (expected, written) in right.items():
        if written != expected:
            raise RisError(
                f'{card.name}: the card must have {key} = "{expected}", where make-shapes writes, not "{written}"'
            )


def _generate(options: StageOptions, card: Card, folder: Path) -> None:
    from ris_pipeline.shapes.generate import generate

    settings = dict(card.generate)
    with progress(options, card.name, sum(settings["n_images"].values())) as advance:
        generate(folder, **settings, workers=options.workers, advance=advance)


def _read_stamp(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
