"""`ris make-pseudolabels`: the selected response maps of the train split → one mask PNG per ref."""

from typing import TYPE_CHECKING

from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import CONTACT_SHEET, SEEDS, label_path, store_path
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import PseudolabelConfig
from stages.common import device_of, due, input_of, open_dataset, request_of, resolve_config, show
from stages.options import StageOptions, say
from stages.progress import progress, report_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ris_pipeline.datasets import Dataset
    from ris_pipeline.datasets.records import ImageGroup
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.networks.irnet import IRNet

SPLIT = "train"


def run(options: StageOptions, refine: bool) -> None:
    """Make the pseudo-labels, with or without refinement, unless that is done."""
    config = resolve_config(options, PseudolabelConfig, "pseudolabels", refine=refine)
    responses = input_of(options, "responses", split=SPLIT)
    request = request_of(options, "pseudolabels", config, inputs=[responses], flags={"refine": refine})
    if due(options, request):
        _make(options, request, config, responses)
    show(options, request)


def _make(options: StageOptions, request: Request, config: PseudolabelConfig, responses: Artifact) -> None:
    from ris_pipeline.maps.store import ResponseStore

    dataset = open_dataset(options, SPLIT, with_images=True)
    store = ResponseStore.open(store_path(responses.path, SPLIT))
    with publish(request, force=options.force) as work:
        fill(options, work, dataset, store, config)


def fill(
    options: StageOptions, work: Work, dataset: "Dataset", store: "ResponseStore", config: PseudolabelConfig
) -> None:
    """Write the pseudo-labels that are missing in the work folder, and the contact sheet."""
    from ris_pipeline.datasets.records import group_by_image
    from ris_pipeline.refine.pseudolabels import count_labels, save_thresholded

    groups = group_by_image(dataset)
    if config.refine:
        _refine(options, config, work, dataset, store, groups)
    else:
        with progress(options, "labels", len(dataset.refs)) as advance:
            save_thresholded(dataset, store, groups, work.path, config.threshold, advance)
    _save_sheet(work, dataset, groups)
    with progress(options, "count", len(dataset.refs)) as advance:
        counts = count_labels(work.path, dataset.refs, advance)
    work.counts |= {
        "refs": len(dataset.refs),
        "images": len(groups),
        "empty": counts.n_empty,
        "tiny": counts.n_tiny,
        "ignored_per_mille": round(1000 * counts.ignored_share),
    }
    say_what_labels_hold(options, work.counts)


def say_what_labels_hold(options: StageOptions, counts: "Mapping[str, int]") -> None:
    """Say how many pseudo-labels hold no object, as a warning where half of them do."""
    refs, empty = counts["refs"], counts.get("empty", 0)
    ignored = f", {counts['ignored_per_mille'] / 10:.1f} % of the pixels ignored" if counts["ignored_per_mille"] else ""
    line = f"{refs:,} pseudo-labels: {empty:,} empty, {counts['tiny']:,} tiny{ignored}"
    if 2 * empty >= refs:
        line = f"warning: {line}; at least half of them teach nothing: look at the responses (ris report)"
    say(options, line)


def _refine(
    options: StageOptions,
    config: PseudolabelConfig,
    work: Work,
    dataset: "Dataset",
    store: "ResponseStore",
    groups: "Sequence[ImageGroup]",
) -> None:
    """IRNet, learnt unless it is given, then the walk; each goes on where an earlier run broke off."""
    import torch

    from ris_pipeline.networks.load import build_irnet
    from ris_pipeline.refine.pseudolabels import save_refined

    torch.manual_seed(options.seed)
    net = build_irnet(config)
    if config.irnet is None:
        _learn(options, config, work, dataset, store, groups[: config.irn_images or None], net)
    device = device_of(options)
    with work.timed("walk"), progress(options, "labels", len(dataset.refs)) as advance:
        save_refined(dataset, store, groups, work.path, net, config, device, options.workers, advance)
    work.host |= {"device": str(device)}


def _learn(
    options: StageOptions,
    config: PseudolabelConfig,
    work: Work,
    dataset: "Dataset",
    store: "ResponseStore",
    groups: "Sequence[ImageGroup]",
    net: "IRNet",
) -> None:
    """Confident labels of the images, then IRNet from them."""
    from ris_pipeline.refine.pseudolabels import save_seeds
    from ris_pipeline.training.irnet import SeedFile, count_steps, train_irnet

    seeds = work.path / SEEDS
    seeds.mkdir(exist_ok=True)
    with (
        work.timed("seeds"),
        progress(options, "seeds", sum(len(one.refs) for one in groups)) as advance,
    ):
        save_seeds(dataset, store, groups, seeds, config, options.workers, advance)
    files = [
        SeedFile(dataset.images[one.image_id], label_path(seeds, ref.ref_id)) for one in groups for ref in one.refs
    ]
    with work.timed("irnet"), progress(options, "irnet", count_steps(len(files), config)) as advance:
        train_irnet(
            net, files, config, folder=work.path, seed=options.seed, device=device_of(options),
            workers=options.workers, report=report_steps(advance),
        )  # fmt: skip


def _save_sheet(work: Work, dataset: "Dataset", groups: "Sequence[ImageGroup]") -> None:
    """contact-sheet.png: the first pseudo-labels over their images."""
    from PIL import Image

    from ris_pipeline.arrays import FOREGROUND
    from ris_pipeline.datasets.io.images import load_image
    from ris_pipeline.datasets.io.labels import load_label
    from ris_pipeline.pictures import contact_sheet, overlay_mask

    tiles = []
    for one in groups[:12]:
        image = load_image(dataset.images[one.image_id])
        for ref in one.refs[:2]:
            label = load_label(label_path(work.path, ref.ref_id))
            tiles.append((ref.expressions[0].sentence, overlay_mask(image, label == FOREGROUND)))
    Image.fromarray(contact_sheet(tiles)).save(work.path / CONTACT_SHEET)
