"""What a stage works with: a data set, a folder of runs and the settings of a call, each looked up once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from ris_pipeline.artifacts.find import explain, find, find_latest
from ris_pipeline.artifacts.freshness import Freshness, describe_other_data, split_of
from ris_pipeline.artifacts.identity import Artifact, Request, digest, label_of
from ris_pipeline.artifacts.layout import METHOD, NO_ARTIFACTS, PROPOSALS, STAGES, TRAIN_SPLIT, VALIDATION, command_of
from ris_pipeline.artifacts.publish import point_latest, remove_leftovers
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.config import CONFIGS, find_preset, load_config_file, record_settings, resolve
from ris_pipeline.datasets.card import Card, load_card
from ris_pipeline.errors import RisError, did_you_mean, suggest_path
from ris_pipeline.methods import METHODS, Method
from ris_pipeline.process.console import Console
from ris_pipeline.process.ranks import agreed, counted, find_ranks
from ris_pipeline.process.workers import WORKERS

if TYPE_CHECKING:
    import torch

    from ris_pipeline.datasets.inventory import Inventory
    from ris_pipeline.datasets.records import Dataset

C = TypeVar("C")
Settings = Mapping[str, Any]
MANY_FILES = 1000  # so many take a while to read


def list_tables() -> list[str]:
    """Return the tables of settings that a card or configuration file may have: one per stage or compared method."""
    return list(dict.fromkeys((*CONFIGS, *(method.table for method in METHODS.values()))))


class Places(TypedDict, total=False):
    """Where a function of the chain reads and writes, and how it computes: the options of the commands.

    `data_root`, `runs`: folders of the data sets and of the artifacts, "data" and "runs" if left out. `seed`: of all
    random numbers, 0. `device`: "auto", "cpu", "cuda", "cuda:1", "mps". `precision`: "fp32", "tf32", "bf16",
    "fp16", "auto". `workers`: processes that read images, one a core. `compiled`: whether trainings
    use torch.compile, False. `force`: make it again, even if nothing changed. `quiet`: no progress.
    """

    data_root: Path | str
    runs: Path | str
    seed: int
    device: str
    precision: str
    workers: int
    compiled: bool
    force: bool
    quiet: bool


@dataclass
class Context:
    """The data set, the places and the settings of one call."""

    card: Card
    data_root: Path = Path("data")
    runs: Path = Path("runs")
    preset: str | None = None  # a shipped configuration file, weaker than the own one
    config_file: Path | None = None  # TOML, one table per stage
    assignments: Settings = field(default_factory=dict)  # of single keys, stronger than the file
    seed: int = 0
    device_name: str = "auto"
    precision: str = "fp32"
    workers: int = WORKERS
    compiled: bool = False  # whether the trainings use torch.compile
    force: bool = False
    dry_run: bool = False
    console: Console = field(default_factory=Console)
    card_name: str = "shapes"  # as it was asked for
    supply: Callable[..., Artifact | None] | None = None  # gives what a stage reads in place of the latest artifact

    def __post_init__(self) -> None:
        if self.precision == "auto":
            from ris_pipeline.process.device import choose_precision

            self.precision = choose_precision(self.device)
            self.say(f"precision: {self.precision}")

    def vary(self, **changes: Any) -> Context:
        """Return a context with other settings, for the same data set, that shares what is known of its files."""
        other = replace(self, **changes)
        known = {name: getattr(self, name) for name in ("inventory", "_images", "_datasets")}
        vars(other).update(known)
        return other

    def say(self, text: str) -> None:
        """Print a remark on stderr."""
        self.console.say(text)

    def command(self, command: str) -> str:
        """Return a command with the options for these data and places, except defaults."""
        places = (
            ("--dataset", self.card_name, "shapes"),
            ("--data-root", self.data_root, Path("data")),
            ("--runs", self.runs, Path("runs")),
            ("--preset", self.preset, None),
            ("--config", self.config_file, None),
        )
        words = [word for name, value, usual in places if value != usual for word in (name, str(value))]
        return f"{command} {shlex.join(words)}".rstrip()

    def find_chosen(self, table: str, *, beside: bool = False) -> dict[str, Any]:
        """Return what the preset, the configuration file and the assignments say of a stage or method.

        `beside`: the command is of another one, so that only assignments such as clip-es.box_threshold=0.4 count.
        """
        tables = list_tables()
        chosen: dict[str, Any] = {}
        for file in (find_preset(self.preset) if self.preset else None, self.config_file):
            chosen |= load_config_file(file, table, tables) if file else {}
        for key, value in self.assignments.items():
            prefix, dot, name = key.rpartition(".")
            if dot and prefix not in tables:
                raise RisError(f"--set {key}: there is no stage or method {prefix!r}{did_you_mean(prefix, tables)}")
            if prefix == table or not (dot or beside):
                chosen[name] = value
        return chosen

    def resolve(
        self, cls: type[C], table: str, settings: C | Settings | None = None, *, beside: bool = False, **flags: Any
    ) -> C:
        """Return the configuration of a stage or method.

        Defaults < card < preset < file < assignments < `settings` < `flags`.

        `settings`: values by key, or a whole configuration, of which only `flags` change anything. `beside`: as in
        `find_chosen`.
        """
        tables = list_tables()
        for name in self.card.config:
            if name not in tables:
                raise RisError(f"card {self.card.name}: unknown table [config.{name}]{did_you_mean(name, tables)}")
        if isinstance(settings, cls):
            return replace(settings, **flags)  # type: ignore[type-var]
        assert settings is None or isinstance(settings, Mapping)
        chosen = self.find_chosen(table, beside=beside)
        return resolve(cls, self.card.config.get(table, {}), chosen, settings or {}, flags)

    def open_dataset(self, split: str, *, with_images: bool = False) -> Dataset:
        """Return a split of the data set; say what is left out of it or looks odd.

        `with_images`: also raise RisError where any of its image files is missing or empty.
        """
        from ris_pipeline.datasets import load_dataset

        if with_images:
            self.inventory.check_files(split)
        if split not in self._datasets:
            self._datasets[split] = load_dataset(self.card, self.data_root, split)
            for remark in self._datasets[split].remarks:
                self.say(remark)
        return self._datasets[split]

    @agreed
    def find_splits(self, chosen: Sequence[str] | None) -> list[str]:
        """Return the `chosen` splits, or all that have refs. Raises RisError for an unknown split, naming the nearest.

        Only a split without an expected size, as in own pairs, is opened to see whether it is empty.
        """
        for split in chosen or ():
            self.card.check_split(split)
        splits = self.card.splits
        return list(chosen or (split for split in splits if splits[split] or self._has_refs(split)))

    def _has_refs(self, split: str) -> bool:
        from ris_pipeline.datasets.load import list_files, read_split

        list_files(self.card, self.data_root)
        reading = read_split(self.card, self.data_root, split)
        return bool(reading.refs or reading.faults)

    @cached_property
    def inventory(self) -> Inventory:
        """The files of the data set, and what earlier calls found out about them."""
        from ris_pipeline.datasets.inventory import Inventory

        return Inventory(self.card, self.data_root, self.runs / self.card.name / "data.json")

    @cached_property
    def data_digest(self) -> str:
        """The digest of the annotation files and of the card's exclude list. Raises RisError naming missing files."""
        return digest(self.inventory.annotations())

    @cached_property
    def _datasets(self) -> dict[str, Dataset]:
        return {}

    def digest_images(self, split: str) -> str:
        """Return the digest of a split's images and mask files. Raises RisError where its records are faulty."""
        if split not in self._images:

            def report(n: int) -> None:
                if n > MANY_FILES:
                    self.say(f"{self.card.name} {split}: reading {n:,} images, once")

            self._images[split] = self.inventory.images(split, report)
        return self._images[split]

    @cached_property
    def _images(self) -> dict[str, str]:
        return {}

    @cached_property
    def device(self) -> torch.device:
        """The device to compute on: of several processes on GPUs, each has its own.

        Raises RisError where it is not usable, or not with the precision.
        """
        from ris_pipeline.process.device import allow_tf32, find_device

        device = find_device(self.device_name)
        if self.precision in ("fp16", "tf32") and device.type != "cuda":
            what = f"--precision {self.precision} needs a CUDA device"
            raise RisError(f"{what}, and this one is {device.type}; use bf16 or fp32")
        if self.precision == "tf32":
            allow_tf32()
        return find_ranks().choose_device(device)

    @cached_property
    def freshness(self) -> Freshness:
        """The judge of which artifacts of the data set are stale."""
        return Freshness(self.runs, self.card.name, self._look, self._configure)

    def _look(self, name: str, manifest: Mapping[str, Any]) -> str:
        """Return the present digest of an input that is no artifact."""
        if name == METHOD:
            method = METHODS.get(str(manifest["flags"].get(METHOD)))
            return method.version if method else "missing"
        if name == "data":
            return self.data_digest
        validated = manifest["configuration"]["validate"] if name == VALIDATION else ""
        return self.digest_images(validated or split_of(manifest))

    def _configure(self, artifact: Artifact) -> dict[str, Any] | None:
        """Return the configuration with which an artifact would be made now."""
        manifest = artifact.manifest
        stage, flags = manifest["stage"], manifest["flags"]
        if stage not in CONFIGS:
            return None
        own = {key: value for key, value in flags.items() if key in manifest["configuration"]}
        if PROPOSALS in flags and stage == "pseudolabels":  # which take the place of a refinement
            own["refine"] = False
        # Settings that were given when it was made make nothing stale; those given now are compared.
        chosen = {} if self.preset or self.config_file or self.assignments else manifest.get("chosen", {})
        method = METHODS.get(str(flags.get(METHOD)))
        if method and stage == "step1":
            return record_settings(self.resolve(method.config, method.table, {**chosen, **own}))
        beside = {} if method is None else chosen.get(method.table, {})
        chosen = {key: value for key, value in chosen.items() if method is None or key != method.table}
        configuration = record_settings(self.resolve(CONFIGS[stage], stage, {**chosen, **own}))
        if method and stage == "responses" and not method.trained:
            configuration[method.table] = asdict(self.resolve(method.config, method.table, beside, beside=True))
        return configuration

    def look_up(self, stage: str, **flags: str | bool) -> Artifact | None:
        """Return what a stage reads: the latest artifact of `stage` with these flags, or what `supply` gives."""
        if self.supply is not None:
            return self.supply(self, stage, **flags)
        return find_latest(self.runs, self.card.name, stage, **flags)

    @agreed
    def find_input(self, stage: str, **flags: str | bool) -> Artifact:
        """Return `look_up`'s artifact. Raises RisError with the command that makes it where there is none."""
        artifact = self.look_up(stage, **flags)
        if artifact is None:
            what = f"{stage} ({label_of(flags)})" if flags else stage
            # Before the command, which stands at the end so that it can be copied.
            hint = suggest_path(self.runs)
            command = self.command(command_of(stage, flags))
            raise RisError(f"{self.runs / self.card.name}: no finished {what} yet{hint}; run: {command}")
        self._check_lineage(artifact)
        return artifact

    def _check_lineage(self, artifact: Artifact) -> None:
        """Raise RisError where the annotations or images behind an artifact have changed since it was made.

        An artifact knows sentences and objects by their ids, which may mean others after a change.
        """
        line = describe_other_data(artifact, self.runs, self.card.name, self._look)
        if line is None:
            return
        stage = str(artifact.manifest["stage"])
        if stage in ("responses", "pseudolabels"):
            what = "" if line.startswith(artifact.name) else f"{artifact.name} is out of date: "
            raise RisError(f"{what}{line}; make it again: {self.command(STAGES[stage].command)}")
        self.say(f"{artifact.name} is stale: {line}")

    @agreed
    def request(
        self,
        stage: str,
        config: Any,
        *,
        settings: Any = None,
        inputs: Iterable[Artifact] = (),
        others: Mapping[str, str] | None = None,
        flags: Mapping[str, str | bool] | None = None,
        method: Method | None = None,
    ) -> Request:
        """Return what `stage` is asked to make from its resolved `config`, the artifacts it reads and the data set.

        `settings`: as `resolve` had them. `others`: inputs that are no artifacts. `method`: that makes it; where it
        needs no training, its settings count beside those of the stage.
        """
        flags = dict(flags or {})
        data = {"data": self.data_digest}
        if stage != "report":  # which is made of artifacts
            data["images"] = self.digest_images(str(flags.get("split", TRAIN_SPLIT)))
        if validated := getattr(config, "validate", ""):
            data[VALIDATION] = self.digest_images(validated)
        given = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else settings
        chosen = {**self.find_chosen(method.table if method and stage == "step1" else stage), **(given or {})}
        configuration, versions = record_settings(config), {}
        if method is not None:
            versions, flags = method.version_input, {**method.flags, **flags}
            if not method.trained:
                configuration[method.table] = asdict(self.resolve(method.config, method.table, beside=True))
                if beside := self.find_chosen(method.table, beside=True):
                    chosen[method.table] = beside
        return Request(
            runs=self.runs,
            dataset=self.card.name,
            stage=stage,
            configuration=configuration,
            inputs={**data, **versions, **(others or {}), **{artifact.name: artifact.digest for artifact in inputs}},
            flags=flags,
            seed=self.seed,
            precision=self.precision,
            chosen=chosen,
            becomes_latest=self.supply is None,  # a row of an experiment is not what the next command is to read
        )

    @agreed
    def is_due(self, request: Request, why: str = "") -> bool:
        """Return whether the stage has to run; say why, or why not, and with which configuration.

        `why`: a reason to run even though the request has not changed. Raises RisError where an artifact that it reads
        is damaged.
        """
        name = " ".join([request.stage, *(label_of({flag: value}) for flag, value in request.flags.items())])
        if not self.dry_run:
            # Runs that are up to date may be read-only.
            with suppress(OSError):
                remove_leftovers(request)
        # A broken run with --force beside a finished artifact is to be finished as well.
        found = None if self.force or why or request.partial.exists() else find(request)
        if found is not None:
            self.say(f"{name}: up to date, same configuration, inputs and code as {found.path.name}")
            if request.becomes_latest and not self.dry_run:
                with suppress(OSError):
                    point_latest(found)
            return False
        reason = "--force" if self.force else why or explain(request)
        self.say(f"{name}: {'would run' if self.dry_run else 'runs'} ({reason})")
        settings = [
            f"{key}.{name}={part}" if isinstance(value, dict) else f"{key}={value}"
            for key, value in request.configuration.items()
            for name, part in (value.items() if isinstance(value, dict) else [("", value)])
        ]
        self.say(f"  {' '.join(settings)}")
        if not self.dry_run:
            # A flipped bit in weights or labels raises no error anywhere; it only changes the result.
            for source, its_digest in request.inputs.items():
                if source not in NO_ARTIFACTS:
                    check_whole(request.runs / request.dataset / source.partition("/")[0] / its_digest)
        return not self.dry_run

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Yield advance(n), which shows n more of `total` things that this process has done, or others beside it have.

        The block ends when all of them have left it. `done`: as of `Console.progress`.
        """
        with self.console.progress(label, total, done) as advance, counted(advance) as count:
            yield count


def open_context(data: Context | Card | Path | str, **places: Unpack[Places]) -> Context:
    """Return the context of a call for a data set, given by card, name or file; a context is returned as it is."""
    if isinstance(data, Context):
        return data
    card = data if isinstance(data, Card) else load_card(data)
    return Context(
        card,
        data_root=Path(places.get("data_root", "data")),
        runs=Path(places.get("runs", "runs")),
        seed=places.get("seed", 0),
        device_name=places.get("device", "auto"),
        precision=places.get("precision", "fp32"),
        workers=places.get("workers", WORKERS),
        compiled=places.get("compiled", False),
        force=places.get("force", False),
        console=Console(quiet=places.get("quiet", False)),
        card_name=card.name if isinstance(data, Card) else str(data),
    )
