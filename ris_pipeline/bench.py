"""What each stage does in a second on this machine: the stages' own code, made-up data of a data set's shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import copyfile
from statistics import median
from typing import Any, TypeVar, cast

import numpy as np
import PIL.Image
import torch

from ris_pipeline.artifacts.layout import TRAIN_SPLIT, label_path
from ris_pipeline.chain.context import Context
from ris_pipeline.chain.scores import BATCH_SIZE
from ris_pipeline.config import PseudolabelConfig, ResponsesConfig, Step1Config, Step2Config
from ris_pipeline.cost import count_macs
from ris_pipeline.datasets.io.images import size_of
from ris_pipeline.datasets.records import Annotation, Dataset, Expression, Image, Ref, group_by_image
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import fill_responses, open_store
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import tris
from ris_pipeline.networks.load import (
    aux_from_config,
    freeze,
    irnet_from_config,
    step1_from_config,
    step2_from_config,
)
from ris_pipeline.process.device import autocast
from ris_pipeline.process.ranks import ALONE
from ris_pipeline.refine.labels import write_labels
from ris_pipeline.refine.pieces import keep_meant_pieces
from ris_pipeline.refine.pseudolabels import save_refined, save_seeds, save_segmented
from ris_pipeline.scoring.evaluate import evaluate_network
from ris_pipeline.training.batches import RefBatches, RefLabels
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.irnet import Cuts, IRNetTask, SeedFile, count_steps
from ris_pipeline.training.loop import Task, train
from ris_pipeline.training.readers import Source
from ris_pipeline.training.tasks import Step2Task

STAGES = ("step1", "responses", "pseudolabels", "step2", "scores")
# Images and refs of train, of data sets that can be measured without their files; the cards have the sentences.
TRAIN_SIZES = {"refcoco": (16_994, 42_404), "refcoco+": (16_992, 42_278), "refcocog-umd": (21_899, 42_226)}
COCO_HW = (480, 640)
WALKED = 4  # images for each step that is timed
N_PICTURES = 8  # that differ: drawing more would take longer than what is measured

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a data set is; `n_others`: the sentences of the splits beside train."""

    n_images: int
    n_refs: int
    n_sentences: int
    n_others: int
    hw: tuple[int, int]  # of its images, the median


@dataclass(frozen=True, slots=True)
class Throughput:
    """What a stage, or a part of it, does in a second. None: not counted, or not known on this system.

    gflop: per unit, of convolutions and matrix products, two for a multiplication with its sum. share: of
    `measure_peak`.
    memory_mb: the most that was taken, of the device's memory on CUDA, else of the main process's.
    n_units, hours: of the stage on the whole data set as configured, at this rate.
    """

    stage: str
    unit: str
    precision: str
    per_second: float
    gflop: float | None
    share: float | None
    memory_mb: float | None
    n_units: int
    hours: float


def find_shape(context: Context) -> Shape:
    """Return the sizes of the context's data set: as published, else of its files, which are read."""
    card = context.card
    if card.name in TRAIN_SIZES:
        n_sentences = {split: int(n or 0) for split, n in card.splits.items()}
        sizes, hw = TRAIN_SIZES[card.name], COCO_HW
    else:
        datasets = {split: context.open_dataset(split) for split in context.find_splits(None)}
        n_sentences = {split: dataset.n_expressions for split, dataset in datasets.items()}
        learnt = datasets[TRAIN_SPLIT]
        sizes = len(learnt.refs_of_image), len(learnt.refs)
        heights, widths = zip(*(size_of(learnt.images[i]) for i in islice(learnt.refs_of_image, 100)), strict=True)
        hw = round(median(heights)), round(median(widths))
    n_train = n_sentences.pop(TRAIN_SPLIT)
    return Shape(*sizes, n_train, sum(n_sentences.values()), hw)


def make_dataset(folder: Path, shape: Shape, n_images: int) -> Dataset:
    """Return a data set of so many images of noise, with as many refs an image and sentences a ref as the shape's."""
    rng = np.random.default_rng(0)
    height, width = shape.hw
    box = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
    left, top, right, bottom = box
    whole = Annotation(box, [[left, top, right, top, right, bottom, left, bottom]])
    images, refs = {}, []
    for i in range(n_images):
        images[i] = Image(i, folder / f"{i}.jpg", shape.hw)
        if i < N_PICTURES:
            # Coarse noise takes a JPEG of a photograph's size.
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            PIL.Image.fromarray(coarse).resize((width, height)).save(images[i].path, quality=90)
        else:
            copyfile(images[i % N_PICTURES].path, images[i].path)
        for ref_id in _shared_out(i, shape.n_refs, shape.n_images):
            sentences = _shared_out(ref_id, shape.n_sentences, shape.n_refs)
            expressions = tuple(Expression(k, f"the thing number {k}") for k in sentences)
            refs.append(Ref(ref_id, i, TRAIN_SPLIT, expressions, (whole,)))
    return Dataset("made up", TRAIN_SPLIT, images, tuple(refs))


def _shared_out(i: int, n_parts: int, n_wholes: int) -> range:
    """Return the numbers of the parts that belong to whole i, where each has n_parts / n_wholes on average."""
    return range(i * n_parts // n_wholes, (i + 1) * n_parts // n_wholes)


def measure_peak(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product in that precision, the best of five."""
    n = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(n, n, device=device)
    with autocast(device, precision):
        matrix = matrix.to((matrix[:1, :1] @ matrix[:1, :1]).dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        _ = (matrix @ matrix)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return float(2 * n**3 / min(seconds[1:]))


class Clock:
    """The times at which units were done; the first mark is the warm-up's."""

    def __init__(self, marks: Iterable[tuple[float, int]] = ()) -> None:
        self.marks = list(marks)

    def __call__(self, n: int) -> None:
        """Note that n more units are done."""
        self.marks.append((time.perf_counter(), n))

    def rate(self) -> float:
        """Return the units a second after the first mark."""
        (start, _), *rest = self.marks
        return sum(n for _, n in rest) / (rest[-1][0] - start)


class Bench:
    """The stages of a context's configuration, with random weights, on a made-up data set in `folder`.

    steps: batches that are timed, behind one that warms up. batch: size of all batches; None: as configured.
    """

    def __init__(self, context: Context, folder: Path, shape: Shape, steps: int, batch: int | None) -> None:
        self.context, self.folder, self.shape, self.steps = context, folder, shape, steps
        self.device = context.device
        size = {} if batch is None else {"batch_size": batch}
        self.step1 = self._configure(Step1Config, "step1", size)
        self.responses = self._configure(ResponsesConfig, "responses", size)
        irn_size = {} if batch is None else {"irn_batch": batch}
        self.labels = self._configure(PseudolabelConfig, "pseudolabels", {"irnet": None, **irn_size})
        self.step2 = self._configure(Step2Config, "step2", size)
        self.score_batch = batch or BATCH_SIZE
        seeds = -(-self.labels.irn_batch * shape.n_images // shape.n_refs) + 1
        n_images = max(
            self.step1.batch_size, self.step2.batch_size, seeds, (steps + 1) * WALKED,
            (steps + 1) * max(self.responses.batch_size, self.score_batch),
        )  # fmt: skip
        self.dataset = make_dataset(folder, shape, n_images)
        self.groups = group_by_image(self.dataset)
        self.peaks: dict[str, float] = {}

    def _configure(self, cls: type[C], stage: str, changes: Mapping[str, Any]) -> C:
        """Return the configuration of a stage with these changes and random weights."""
        config: Any = self.context.resolve(cls, stage, beside=True)
        weights = {field.name: None for field in fields(config) if field.name.endswith("weights")}
        return cast(C, replace(config, **weights, **changes))

    def measure(self, stage: str) -> Iterator[Throughput]:
        """Yield what the stage does in a second, of pseudolabels each of its parts."""
        measures: dict[str, Callable[[], Iterator[Throughput]]] = {
            "step1": self._step1, "responses": self._responses, "pseudolabels": self._pseudolabels,
            "step2": self._step2, "scores": self._scores,
        }  # fmt: skip
        return measures[stage]()

    def _step1(self) -> Iterator[Throughput]:
        config = self.step1
        task = tris.build_task(tris.build(config, None), config)
        plan = tris.plan(self._refs(config), config, self.context.seed)
        yield self._train("step1", task, RefBatches(plan, self.steps + 1, config.input_size), config)

    def _step2(self) -> Iterator[Throughput]:
        config = self.step2
        dataset = self._refs(config)
        folder = self._make_folder("targets")
        for ref in dataset.refs:
            write_labels(folder, [ref.ref_id], dataset.load_mask(ref)[None].astype(np.uint8))
        plan = Plan(dataset, config.batch_size, config.refs_per_image, 0, self.context.seed)
        source = RefBatches(plan, self.steps + 1, config.input_size, RefLabels(folder))
        yield self._train("step2", Step2Task(step2_from_config(config), config), source, config)

    def _refs(self, config: Step1Config | Step2Config) -> Dataset:
        """Return one batch of refs, no more of an image than the configuration lets stand together."""
        refs = [ref for group in self.groups for ref in group.refs[: config.refs_per_image]]
        return replace(self.dataset, refs=tuple(refs[: config.batch_size]))

    def _train(self, stage: str, task: Task[Any], source: Source[Any], config: Step1Config | Step2Config) -> Throughput:
        precision = self.context.precision
        n_units = self.shape.n_refs * config.epochs
        return self._run_training(stage, "refs", task, source, config.batch_size, precision, n_units)

    def _run_training(
        self, stage: str, unit: str, task: Task[Any], source: Source[Any], size: int, precision: str, n_units: int
    ) -> Throughput:
        clock = Clock()
        task.to(self.device).train()
        reset_peak(self.device)
        macs = sum(count_macs(lambda: task(source[0])["loss"].backward()).values())
        train(
            task, source, self._make_folder(stage), device=self.device, precision=precision,
            workers=self.context.workers, ranks=ALONE, seed=self.context.seed, report=lambda *_: clock(size),
        )  # fmt: skip
        return self._result(stage, unit, precision, clock, macs / size, n_units)

    def _responses(self) -> Iterator[Throughput]:
        config = self.responses
        responder = tris.wrap(freeze(step1_from_config(self.step1), self.device), self.step1)
        aux = aux_from_config(self.step1).to(self.device) if config.prms else None

        def fill(n_batches: int, clock: Callable[[int], None]) -> None:
            dataset = self._images(n_batches * config.batch_size)
            store = open_store(self.folder / f"responses-{n_batches}.zarr", dataset, responder, {})
            fill_responses(responder, aux, dataset, store, range(store.n_blocks), config, clock)

        clock, first = Clock(), Clock()
        reset_peak(self.device)
        macs = sum(count_macs(lambda: fill(1, first)).values())
        fill(self.steps + 1, clock)
        n_units = self.shape.n_sentences + self.shape.n_others
        yield self._result("responses", "sentences", "fp32", clock, macs / first.marks[0][1], n_units)

    def _images(self, n: int) -> Dataset:
        return replace(self.dataset, refs=tuple(ref for group in self.groups[:n] for ref in group.refs))

    def _pseudolabels(self) -> Iterator[Throughput]:
        config, shape, device = self.labels, self.shape, self.device
        store = self._make_store()
        per_image = shape.n_refs / shape.n_images
        n_learnt = min(config.irn_images or shape.n_images, shape.n_images)
        seeds, labels = self._make_folder("seeds"), self._make_folder("labels")
        refs = self.dataset.refs[: config.irn_batch + self.steps]

        reset_peak(device)
        groups = group_by_image(replace(self.dataset, refs=refs))
        save_seeds(self.dataset, store, groups, seeds, config, self.context.workers, _ignore, device)
        clock = _clock_of_files(label_path(seeds, ref.ref_id) for ref in refs)
        yield self._result("seeds", "refs", "fp32", clock, None, round(n_learnt * per_image))

        net = irnet_from_config(config)
        files = [SeedFile(self.dataset.images[ref.image_id], label_path(seeds, ref.ref_id)) for ref in refs]
        source = Cuts(files[: config.irn_batch], replace(config, irn_epochs=self.steps + 1), self.context.seed)
        n_cuts = count_steps(round(n_learnt * per_image), config) * config.irn_batch
        yield self._run_training("irnet", "cuts", IRNetTask(net, config), source, config.irn_batch, "fp32", n_cuts)

        def walk(n_images: int, folder: Path, workers: int) -> None:
            groups = self.groups[:n_images]
            save_refined(self.dataset, store, groups, folder, net, config, None, device, workers, _ignore)

        reset_peak(device)
        macs = sum(count_macs(partial(walk, 1, self._make_folder("first"), 0)).values())
        n_walked = (self.steps + 1) * WALKED
        walk(n_walked, labels, self.context.workers)
        clock = _clock_of_files(label_path(labels, group.refs[-1].ref_id) for group in self.groups[:n_walked])
        yield self._result("walk", "images", "fp32", clock, macs, shape.n_images)
        yield from self._round()

    def _round(self) -> Iterator[Throughput]:
        """Yield what the labels of a later round take, and, where configured, the choice among their pieces."""
        config, device = self.labels, self.device
        responder, n_images = self._step2_responder(), (self.steps + 1) * WALKED

        def segment(n_images: int, folder: Path, workers: int) -> None:
            save_segmented(self.dataset, responder, self.groups[:n_images], folder, config, workers, _ignore)

        labels = self._make_folder("round")
        reset_peak(device)
        macs = sum(count_macs(partial(segment, 1, self._make_folder("round-first"), 0)).values())
        segment(n_images, labels, self.context.workers)
        clock = _clock_of_files(label_path(labels, group.refs[-1].ref_id) for group in self.groups[:n_images])
        yield self._result("later round", "images", "fp32", clock, macs, self.shape.n_images)
        if config.pieces:
            aux, clock = aux_from_config(self.step1).to(device), Clock()
            reset_peak(device)
            keep_meant_pieces(self.dataset, self.groups[:n_images], labels, aux, self.step1.input_size, clock)
            yield self._result("pieces", "refs", "fp32", clock, None, self.shape.n_refs)

    def _step2_responder(self) -> tris.Step2Responder:
        return tris.Step2Responder(freeze(step2_from_config(self.step2), self.device), self.step2.input_size)

    def _make_store(self) -> ResponseStore:
        """Return a store of random responses: the refinement takes as long whatever they say."""
        rng = np.random.default_rng(0)
        responder = tris.wrap(step1_from_config(self.step1).eval(), self.step1)
        store = open_store(self.folder / "random.zarr", self.dataset, responder, {})
        for block in range(store.n_blocks):
            shape = (len(store.rows_of_block(block)), *store.grid_hw)
            store.write_block(block, rng.standard_normal(shape, np.float32), rng.random(shape[0], np.float32))
        store.select_maps()
        return store

    def _scores(self) -> Iterator[Throughput]:
        responder = self._step2_responder()
        size, precision = self.score_batch, self.context.precision

        def score(n_batches: int) -> Clock:
            """Return a clock with a mark for each batch."""
            clock = Clock()
            outcomes = evaluate_network(self._images(n_batches * size), responder, size)
            with autocast(self.device, precision):
                for k in range(n_batches):
                    n = sum(len(group.rows) for group in self.groups[k * size : (k + 1) * size])
                    clock(len(list(islice(outcomes, n))))
            return clock

        first: list[Clock] = []
        reset_peak(self.device)
        macs = sum(count_macs(lambda: first.append(score(1))).values())
        clock = score(self.steps + 1)
        per_sentence = macs / first[0].marks[0][1]
        yield self._result("scores", "sentences", precision, clock, per_sentence, self.shape.n_others)

    def _make_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _result(
        self, stage: str, unit: str, precision: str, clock: Clock, macs: float | None, n_units: int
    ) -> Throughput:
        if precision not in self.peaks:
            self.peaks[precision] = measure_peak(self.device, precision)
        rate = clock.rate()
        flop = None if macs is None else 2 * macs
        return Throughput(
            stage, unit, precision, rate, None if flop is None else flop / 1e9,
            None if flop is None else rate * flop / self.peaks[precision],
            read_peak(self.device), n_units, n_units / rate / 3600,
        )  # fmt: skip


def _ignore(_: int) -> None:
    pass


def _clock_of_files(paths: Iterable[Path]) -> Clock:
    """Return when files were written: worker processes make them, a few at once."""
    return Clock((seconds, 1) for seconds in sorted(path.stat().st_mtime for path in paths))


def reset_peak(device: torch.device) -> None:
    """Let `read_peak` forget what was taken before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of all stages so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_peak(device: torch.device) -> float | None:
    """Return the largest memory in MB since `reset_peak`: the device's on CUDA, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), None)


def check_settings(context: Context) -> None:
    """Raise RisError for a setting that does not say of which stage it is."""
    for key in context.assignments:
        if "." not in key:
            raise RisError(f"--set {key}: name the stage, as in --set step1.{key}=…")


def compare(found: Sequence[Throughput], other: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each stage that both have how many times as fast it is here."""
    rates = {result["stage"]: result["per_second"] for result in other}
    return {row.stage: row.per_second / rates[row.stage] for row in found if row.stage in rates}
