"""The selected response maps of the train split, or Step-2's answers in later rounds → one mask PNG per ref."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.find import find, find_behind, load_artifact
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import (
    CONTACT_SHEET,
    METHOD,
    PROPOSALS,
    SEEDS,
    TRAIN_SPLIT,
    flags_of_round,
    label_path,
    store_path,
)
from ris_pipeline.artifacts.publish import Work
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.publish import publish_together
from ris_pipeline.chain.responses import find_judge
from ris_pipeline.config import PseudolabelConfig, Step1Config
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import MadeMeanwhileError, RisError
from ris_pipeline.methods import TRIS, find_method
from ris_pipeline.process.console import report_steps
from ris_pipeline.process.ranks import agree, connected, in_turn, is_first, joined, share

if TYPE_CHECKING:
    from ris_pipeline.datasets.records import Dataset, ImageGroup
    from ris_pipeline.maps.compete import DrawnSentences
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.networks.irnet import IRNet


@joined()
def make_pseudolabels(
    data: Context | Card | Path | str,
    config: PseudolabelConfig | Mapping[str, Any] | None = None,
    *,
    refine: bool | None = None,
    method: str = TRIS,
    round: int = 1,
    proposals: Path | None = None,
    **places: Unpack[Places],
) -> Artifact | None:
    """Make a pseudo-label for each ref of the train split, unless that is done, and return the artifact.

    `refine`: by inter-pixel relations (IRNet), or by a threshold alone; None: as configured. `method`: of a compared
    method's maps. `round`: from the second on, what the Step-2 of the round before answers makes the labels.
    `proposals`: a folder of class-agnostic masks (`maps.proposals`), among which the maps choose instead of being
    refined; supervision beside the sentences, so that the labels are another variant. The others as in `train_step1`.
    Raises RisError where a file of proposals is missing or bad.
    """
    context = open_context(data, **places)
    if proposals is not None:
        if refine or round > 1:
            raise RisError("--proposals takes the place of --refine and --round: choose one")
        refine = False
    if round > 1:
        return _make_round(context, config, round, refine=refine, method=method)
    chosen = {} if refine is None else {"refine": refine}
    resolved = context.resolve(PseudolabelConfig, "pseudolabels", config, **chosen)
    variant = find_method(method).flags
    responses = context.find_input("responses", **variant, split=TRAIN_SPLIT)
    flags = {"refine": resolved.refine, **variant}
    others = {}
    if proposals is not None:
        from ris_pipeline.maps.proposals import digest_proposals

        flags = {PROPOSALS: True, **variant}
        images = context.open_dataset(TRAIN_SPLIT).images.values()
        others = {PROPOSALS: agree(lambda: digest_proposals(proposals, images))}
    request = context.request("pseudolabels", resolved, settings=config, inputs=[responses], others=others, flags=flags)
    if context.is_due(request):
        from ris_pipeline.maps.store import ResponseStore

        judge = _find_judge_behind(context, request) if resolved.pieces else None
        dataset = context.open_dataset(TRAIN_SPLIT, with_images=True)
        with suppress(MadeMeanwhileError), publish_together(context, request) as work:
            store = ResponseStore.open(store_path(responses.path, TRAIN_SPLIT))
            drawn = in_turn(lambda: _draw(context, resolved, dataset, responses))
            _fill(context, work, dataset, store, resolved, drawn, proposals, judge)
    return find(request)


def _make_round(
    context: Context, config: PseudolabelConfig | Mapping[str, Any] | None, number: int,
    *, refine: bool | None, method: str,
) -> Artifact | None:  # fmt: skip
    """Make the labels of a later round, unless that is done, and return the artifact."""
    resolved = context.resolve(PseudolabelConfig, "pseudolabels", config)
    if refine is not None or method != TRIS or resolved.rivals:
        raise RisError("--round makes labels of what TRIS's Step-2 answers: without --refine, --method and rivals")
    step2 = context.find_input("step2", labels="pseudo", **flags_of_round(number - 1))
    request = context.request("pseudolabels", resolved, settings=config, inputs=[step2], flags=flags_of_round(number))
    if context.is_due(request):
        from ris_pipeline.datasets.records import group_by_image
        from ris_pipeline.methods.load import load_network
        from ris_pipeline.refine.pseudolabels import save_segmented

        judge = _find_judge_behind(context, request) if resolved.pieces else None
        dataset = context.open_dataset(TRAIN_SPLIT, with_images=True)
        groups = group_by_image(dataset)
        with suppress(MadeMeanwhileError), publish_together(context, request) as work:
            with work.timed("segment"), context.progress("labels", len(dataset.refs)) as advance:
                network = in_turn(lambda: load_network(step2, context.device))
                save_segmented(dataset, network, share(groups), work.path, resolved, context.workers, advance)
            if judge is not None:
                _keep_pieces(context, work, dataset, groups, judge)
            work.host |= {"device": str(context.device)}
            earlier = find_behind(context.runs / request.dataset, request.inputs, "pseudolabels")
            _finish(context, work, dataset, groups, earlier)
    return find(request)


def describe_labels(counts: Mapping[str, int]) -> str:
    """Return a line on how many pseudo-labels hold no object; a warning if at least half of them do."""
    refs, empty = counts["refs"], counts["empty"]
    line = f"{refs:,} pseudo-labels: {empty:,} empty, {counts['tiny']:,} tiny"
    if counts["ignored_per_mille"]:
        line += f", {counts['ignored_per_mille'] / 10:.1f} % of the pixels ignored"
    if "overlap_per_mille" in counts:  # not of older artifacts
        line += f", {counts['overlap_per_mille'] / 10:.1f} % of the foreground claimed by several refs"
    if "agreement_per_mille" in counts:
        line += f", IoU {counts['agreement_per_mille'] / 10:.1f} with the labels of the round before"
    if 2 * empty >= refs:
        return f"warning: {line}; at least half of them teach nothing; look at the responses (ris report)"
    return line


def _draw(context: Context, config: PseudolabelConfig, dataset: Dataset, responses: Artifact) -> DrawnSentences | None:
    """Return the drawn sentences that compete, with the network that made the responses; None for no rivals."""
    if not config.rivals:
        return None
    from ris_pipeline.maps.compete import DrawnSentences
    from ris_pipeline.methods.load import load_network

    name = next((name for name in responses.manifest["inputs"] if name.partition("/")[0] == "step1"), None)
    if name is None:
        raise RisError(f"rivals = {config.rivals}: {responses.name} comes from no trained network; set rivals=0")
    folder = context.runs / context.card.name / "step1" / responses.manifest["inputs"][name]
    network = load_artifact(folder)
    if network is None:
        raise RisError(f"{folder}: the network that made {responses.name} is gone; dump the responses again")
    check_whole(folder)
    return DrawnSentences(dataset, load_network(network, context.device), config.rivals, context.seed)


def _fill(
    context: Context,
    work: Work,
    dataset: Dataset,
    store: ResponseStore,
    config: PseudolabelConfig,
    drawn: DrawnSentences | None,
    proposals: Path | None,
    judge: Step1Config | None,
) -> None:
    """Write the pseudo-labels that the work folder lacks, and the contact sheet; count what they hold."""
    from ris_pipeline.datasets.records import group_by_image
    from ris_pipeline.refine.pseudolabels import save_thresholded

    groups = group_by_image(dataset)
    if config.refine:
        _refine(context, config, work, dataset, store, drawn, groups)
    else:
        with context.progress("labels", len(dataset.refs)) as advance:
            save_thresholded(dataset, store, share(groups), work.path, config, drawn, proposals, advance)
    if judge is not None:
        _keep_pieces(context, work, dataset, groups, judge)
    _finish(context, work, dataset, groups)


def _find_judge_behind(context: Context, request: Request) -> Step1Config:
    """Return the Step-1 whose frozen CLIP chooses among pieces: that of which the labels come, so that it is known."""
    if METHOD in request.flags:
        return find_judge(context, None)
    step1 = find_behind(context.runs / request.dataset, request.inputs, "step1")
    if step1 is None:
        remedy = "run `ris train-step1` and what follows it again, or set pieces=false"
        raise RisError(f"pieces = true: the Step-1 behind these labels is not there; {remedy}")
    return find_judge(context, step1)


def _keep_pieces(
    context: Context, work: Work, dataset: Dataset, groups: Sequence[ImageGroup], judge: Step1Config
) -> None:
    """Let PRMS choose among the pieces of each label, with the frozen CLIP of a Step-1."""
    from ris_pipeline.networks.load import aux_from_config
    from ris_pipeline.refine.pieces import keep_meant_pieces

    with work.timed("pieces"), context.progress("pieces", len(dataset.refs)) as advance:
        aux = in_turn(lambda: aux_from_config(judge).to(context.device))
        keep_meant_pieces(dataset, share(groups), work.path, aux, judge.input_size, advance)


def _finish(
    context: Context, work: Work, dataset: Dataset, groups: Sequence[ImageGroup], earlier: Artifact | None = None
) -> None:
    """Draw the contact sheet, count what the labels hold, and say it; `earlier`: the labels of the round before.

    One process does it for all.
    """
    from ris_pipeline.refine.quality import count_labels

    if not is_first():
        return
    _save_sheet(work, dataset, groups)
    with context.console.progress("count", len(dataset.refs)) as advance:
        counts = count_labels(work.path, groups, earlier.path if earlier else None, advance)
    work.counts |= {"images": len(groups), **counts}
    context.say(describe_labels(work.counts))


def _refine(
    context: Context,
    config: PseudolabelConfig,
    work: Work,
    dataset: Dataset,
    store: ResponseStore,
    drawn: DrawnSentences | None,
    groups: Sequence[ImageGroup],
) -> None:
    """Train IRNet unless it is given, then walk; both resume a broken run."""
    import torch

    from ris_pipeline.networks.load import irnet_from_config
    from ris_pipeline.refine.pseudolabels import save_refined

    torch.manual_seed(context.seed)
    net = in_turn(lambda: irnet_from_config(config))
    if config.irnet is None:
        _train_irnet(context, config, work, dataset, store, groups[: config.irn_images or None], net)
    with work.timed("walk"), context.progress("labels", len(dataset.refs)) as advance:
        save_refined(
            dataset, store, share(groups), work.path, net, config, drawn, context.device, context.workers, advance
        )
    work.host |= {"device": str(context.device)}


def _train_irnet(
    context: Context,
    config: PseudolabelConfig,
    work: Work,
    dataset: Dataset,
    store: ResponseStore,
    groups: Sequence[ImageGroup],
    net: IRNet,
) -> None:
    """Make the seeds of the images, the pixels that are certain, then train IRNet on them."""
    from ris_pipeline.refine.pseudolabels import save_seeds
    from ris_pipeline.training.irnet import SeedFile, count_steps, train_irnet

    seeds = work.path / SEEDS
    seeds.mkdir(exist_ok=True)
    with work.timed("seeds"), context.progress("seeds", sum(len(group.refs) for group in groups)) as advance:
        save_seeds(dataset, store, share(groups), seeds, config, context.workers, advance, context.device)
    files = [
        SeedFile(dataset.images[group.image_id], label_path(seeds, ref.ref_id))
        for group in groups
        for ref in group.refs
    ]
    with (
        connected(context.device) as ranks,
        work.timed("irnet"),
        context.console.progress("irnet", count_steps(len(files), config)) as advance,
    ):
        train_irnet(
            net, files, config, folder=work.path, seed=context.seed, device=context.device, workers=context.workers,
            report=report_steps(advance), ranks=ranks,
        )  # fmt: skip


def _save_sheet(work: Work, dataset: Dataset, groups: Sequence[ImageGroup]) -> None:
    """Draw the first pseudo-labels over their images, in a single picture."""
    from PIL import Image

    from ris_pipeline.arrays import FOREGROUND
    from ris_pipeline.datasets.io.images import load_image
    from ris_pipeline.datasets.io.labels import load_label
    from ris_pipeline.pictures import contact_sheet, overlay_mask

    tiles = []
    for group in groups[:12]:
        image = load_image(dataset.images[group.image_id])
        for ref in group.refs[:2]:
            label = load_label(label_path(work.path, ref.ref_id))
            tiles.append((ref.expressions[0].sentence, overlay_mask(image, label == FOREGROUND)))
    Image.fromarray(contact_sheet(tiles)).save(work.path / CONTACT_SHEET)
