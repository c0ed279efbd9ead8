"""Which trained network answers: the one that is named, or the latest of a data set; and its Segmenter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ris_pipeline.artifacts.find import find_latest, load_artifact
from ris_pipeline.artifacts.layout import MANIFEST, ROUNDS, flags_of_round
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.chain.context import Context
from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.methods import TRIS, Method, find_method, method_of
from ris_pipeline.networks.weights.checkpoints import CHECKPOINTS, find_checkpoint

if TYPE_CHECKING:
    from ris_pipeline.predict import Segmenter


def choose_checkpoint(
    context: Context, chosen: Path | None, method: str = TRIS, round: int | None = None
) -> Path | None:
    """Return the `chosen` checkpoint, or the latest of the method: of TRIS Step-2, or Step-1 where there is none.

    Of several Step-2 it is that of `round`, or of the last round of labels that there is. Of a compared method it is
    what has been trained in Step-1's place. A name in CHECKPOINTS is fetched. None where nothing is trained: TRIS then
    answers by its CLIP alone, others as they always do. Raises RisError where the checkpoint is missing, damaged or
    another method's, or there is none.
    """
    if round is not None and (chosen is not None or method != TRIS):
        raise RisError("--round chooses among the Step-2 of TRIS: leave out --checkpoint and --method")
    checkpoint = _find_latest(context, find_method(method), round) if chosen is None else chosen
    if checkpoint is not None and not checkpoint.exists():
        if str(checkpoint) not in CHECKPOINTS:
            advice = f"give a released .pth file, its name ({', '.join(CHECKPOINTS)}) or the folder of an artifact"
            raise RisError(f"{checkpoint}: no such checkpoint; {advice}{suggest_path(checkpoint)}")
        if not context.dry_run:
            checkpoint = find_checkpoint(checkpoint, context.console)
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        artifact = load_artifact(checkpoint)
        if method != TRIS and artifact is not None and method_of(artifact).name != method:
            raise RisError(
                f"{checkpoint}: trained by {method_of(artifact).name}, not by {method}; give its own --method"
            )
        check_whole(checkpoint)  # a flipped bit in weights raises no error; it only changes the mask
    return checkpoint


def _find_latest(context: Context, method: Method, round: int | None) -> Path | None:
    if not method.is_tris:
        return context.find_input("step1", **method.flags).path if method.trained else None
    dataset = context.card.name
    rounds = (*reversed(ROUNDS), 1) if round is None else (round,)
    for number in rounds:
        # Not the oracle, which learned from the true masks that the method does without.
        step2 = find_latest(context.runs, dataset, "step2", labels="pseudo", **flags_of_round(number))
        if step2 is not None:
            return step2.path
    if round is not None:
        return context.find_input("step2", labels="pseudo", **flags_of_round(round)).path  # says what makes it
    if find_latest(context.runs, dataset, "step1") is None and _step1_config(context).project_from_clip:
        line = f"{context.runs / dataset}: nothing is trained yet; `ris train-step1` and what follows do better"
        print(line, file=sys.stderr)  # even with --quiet: these are not the masks of a trained network
        return None
    # find_input also compares annotations, and of the data set only the card is needed here.
    step1 = find_latest(context.runs, dataset, "step1") or context.find_input("step1")
    context.say(f"{context.runs / dataset}: no finished step2 yet; by the coarser maps of step1")
    return step1.path


def _step1_config(context: Context) -> Step1Config:
    return context.resolve(Step1Config, "step1")


def load_segmenter(context: Context, checkpoint: Path | None, method: str = TRIS) -> Segmenter:
    """Return the network that `choose_checkpoint` chose, on the device of the context."""
    from ris_pipeline.predict import Segmenter

    device = context.device
    if checkpoint is not None:
        return Segmenter.load(checkpoint, device)
    if method != TRIS:
        found = find_method(method)
        return Segmenter(found.load(context.resolve(found.config, found.table), device))
    return Segmenter.untrained(_step1_config(context), device)
