"""Response maps on disk: the score grid of every sentence of a split, and the rule that makes a map of it.

A grid of 10×10 is kept instead of the map of 480×640 that it is upsampled to: a thousandth of the bytes, and
nothing is lost. The store is a Zarr v3 group:

    logits        float (N, h, w)     scores S of each sentence, float32 or float16; NaN: not written yet
    sent_id       int64 (N,)          one row per sentence, in the order of the dataset
    ref_id        int64 (N,)          the sentences of one ref lie side by side
    image_hw      int32 (N, 2)        height and width of the sentence's image
    prms_score    float32 (N,)        PRMS score of each sentence's map (TRIS, section 3.3); NaN: not computed
    selected      bool (N,)           PRMS's choice, one True per ref; False everywhere: not chosen yet

Its attributes hold the rule (`maps.rule`) and the input size of the network.

The unit of writing is a block: a chunk of up to 1,024 rows and 4 MB, which lands by one rename and so is complete or
absent. Processes may write different blocks at once, and an interrupted dump resumes at the first missing block.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import zarr

from ris_pipeline.artifacts.files import fsync_path, fsync_tree
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import Rule, parse_rule

SCHEMA = 2
BLOCK_ROWS = 1024
BLOCK_BYTES = 1 << 22
MAX_SENTENCES = 2**24  # a hundred times the largest known data set; 128 MB of ids
MAX_SIDE = 2048  # of a grid
MAX_BLOCK_VALUES = MAX_SIDE**2  # one row of the largest grid
_CODEC = zarr.codecs.ZstdCodec(level=3, checksum=True)
_UNDECODABLE = (RuntimeError, ValueError, MemoryError)  # zstd: checksum, frame or length of a chunk damaged

Grids = npt.NDArray[np.float32]
Dtype = Literal["float32", "float16"]


class ResponseStore:
    """The responses of one split, open for reading or for writing whole blocks; laid out as said above.

    >>> import numpy as np
    >>> from pathlib import Path
    >>> from ris_pipeline.maps.rule import RESPONSE
    >>> from ris_pipeline.maps.store import ResponseStore
    >>> store = ResponseStore.create(
    ...     Path("val.zarr"), sent_id=[7, 8, 9], ref_id=[1, 1, 2], image_hw=[(480, 640)] * 3,
    ...     grid_hw=(10, 10), input_size=320, rule=RESPONSE, attributes={},
    ... )
    >>> store.write_block(0, np.ones((3, 10, 10), np.float32))
    >>> store = ResponseStore.open(Path("val.zarr"))
    >>> store.read_grids(store.rows_of_ref(1)).shape
    (2, 10, 10)
    """

    def __init__(self, path: Path, group: Any) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._group = group
        self._logits = group["logits"]
        self.attributes: dict[str, Any] = group.attrs.asdict()
        self.sent_id: npt.NDArray[np.int64] = group["sent_id"][:]
        self.ref_id: npt.NDArray[np.int64] = group["ref_id"][:]
        self.image_hw: npt.NDArray[np.int32] = group["image_hw"][:]
        self.grid_hw: tuple[int, int] = tuple(self._logits.shape[1:])
        self.block_rows: int = self._logits.chunks[0]
        self.input_size: int = self.attributes["input_size"]
        self.rule = parse_rule(self.attributes.get("rule"), str(path))
        self._rows = find_rows(path, self.ref_id)
        self._last_read: tuple[int, Grids] | None = None
        self.selected_rows: npt.NDArray[np.bool_] = group["selected"][:]  # all False before `select_maps`

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        sent_id: Sequence[int] | npt.NDArray[np.int64],
        ref_id: Sequence[int] | npt.NDArray[np.int64],
        image_hw: Sequence[tuple[int, int]] | npt.NDArray[np.int32],
        grid_hw: tuple[int, int],
        input_size: int,
        rule: Rule,
        dtype: Dtype = "float32",
        attributes: Mapping[str, Any],
    ) -> Self:
        """Return a store open for writing: an empty one, or one with the blocks that an interrupted run left at `path`.

        Ids and metadata are always rewritten. `attributes`: JSON values kept with it (digests).
        Raises RisError for repeated sentences, and where the sentences of a ref do not lie side by side.
        """
        sentences, refs = np.asarray(sent_id, np.int64), np.asarray(ref_id, np.int64)
        find_rows(path, refs)
        if len(np.unique(sentences)) < len(sentences):
            raise RisError(f"{path}: two records have one sent_id; mend the dataset's annotations")
        # Made beside and renamed: a crash in here must not leave half a store for `open` to judge.
        unfinished = path.with_name(path.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        n = len(sentences)
        row_bytes = np.dtype(dtype).itemsize * grid_hw[0] * grid_hw[1]
        rows = min(BLOCK_ROWS, max(BLOCK_BYTES // row_bytes, 1))
        group = zarr.create_group(
            str(unfinished),
            zarr_format=3,
            attributes={**attributes, "schema": SCHEMA, "input_size": input_size, "rule": asdict(rule)},
        )
        _add_array(group, "logits", (n, *grid_hw), rows, dtype, np.nan)
        _add_array(group, "prms_score", (n,), rows, "float32", np.nan)
        _add_array(group, "selected", (n,), n, "bool", False)
        _add_array(group, "sent_id", (n,), n, "int64", 0)[:] = sentences
        _add_array(group, "ref_id", (n,), n, "int64", 0)[:] = refs
        _add_array(group, "image_hw", (n, 2), n, "int32", 0)[:] = np.asarray(image_hw, np.int32).reshape(n, 2)
        fsync_tree(unfinished)
        if path.exists():
            _renew(path, unfinished)
        else:
            unfinished.rename(path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Self:
        """Return the store at `path`; RisError where there is none or one of another schema."""
        if not (path / "zarr.json").exists():
            raise RisError(f"{path}: no responses here; run `ris dump-responses` first")
        mode: Literal["r", "r+"] = "r+" if writable else "r"
        try:
            group = zarr.open_group(str(path), mode=mode, zarr_format=3, use_consolidated=False)
            _check_layout(path, group)
        except RisError:
            raise
        except Exception as error:  # metadata that are damaged, or another's, can fail anywhere inside Zarr
            raise RisError(f"{path}: not responses ({error}); make them again: `ris dump-responses --force`") from error
        try:
            return cls(path, group)
        except _UNDECODABLE as error:
            raise RisError(f"{path}: ids are damaged ({error}); run `ris status --repair`") from error

    def __len__(self) -> int:
        """Return N, the number of sentences."""
        return len(self.sent_id)

    @property
    def n_blocks(self) -> int:
        """How many blocks hold the N sentences."""
        return -(-len(self) // self.block_rows)

    def rows_of_block(self, block: int) -> range:
        """Return the rows of a block, fewer in the last."""
        if not 0 <= block < self.n_blocks:
            raise IndexError(f"block {block} of {self.n_blocks}")
        return range(block * self.block_rows, min((block + 1) * self.block_rows, len(self)))

    def write_block(self, block: int, grids: Grids, prms_score: Grids | None = None) -> None:
        """Write one whole block: its grids (rows, h, w) and, where PRMS runs along, its scores (rows,).

        Raises RisError for values that are not finite (NaN means "not written"), ValueError for other shapes.
        """
        rows = self.rows_of_block(block)
        if grids.shape != (len(rows), *self.grid_hw):
            raise ValueError(f"block {block} has shape {(len(rows), *self.grid_hw)}, not {grids.shape}")
        with np.errstate(over="ignore"):  # what half precision cannot hold becomes infinite and is refused below
            grids = grids.astype(self._logits.dtype)
        self._check_finite(rows, grids)
        if prms_score is not None:
            if prms_score.shape != (len(rows),):
                raise ValueError(f"block {block} has {len(rows)} rows, not scores of shape {prms_score.shape}")
            self._check_finite(rows, prms_score)
            self._group["prms_score"][rows.start : rows.stop] = prms_score.astype(np.float32)
            self._bring_to_disk("prms_score", block)
        # Last: a block counts as written when its grids are there.
        self._logits[rows.start : rows.stop] = grids
        self._bring_to_disk("logits", block)
        self._last_read = None

    def _bring_to_disk(self, array: str, block: int) -> None:
        """Bring a block's chunks to the disk, and no others: another process may be writing those."""
        chunks = self.path / array / "c"
        fsync_tree(chunks / str(block))
        fsync_path(chunks)

    def _check_finite(self, rows: range, values: npt.NDArray[np.floating]) -> None:
        bad = ~np.isfinite(values).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            sent_id = self.sent_id[rows.start + int(np.argmax(bad))]
            raise RisError(f"{self.path}: sentence {sent_id} has a score that is not finite; check the checkpoint")

    def missing_blocks(self, *, scored: bool = False) -> list[int]:
        """Return the blocks still to be written, ascending; one that cannot be decoded counts as missing.

        `scored`: so does a block without PRMS scores.
        """
        arrays = [self._logits, self._group["prms_score"]] if scored else [self._logits]

        def is_whole(block: int) -> bool:
            rows = self.rows_of_block(block)
            try:
                return not any(np.isnan(array[rows.start : rows.stop]).any() for array in arrays)
            except _UNDECODABLE:
                return False

        return [block for block in range(self.n_blocks) if not is_whole(block)]

    def read_block(self, block: int) -> Grids:
        """Return a block's grids float32 (rows, h, w), read-only; RisError if missing or damaged."""
        if self._last_read is None or self._last_read[0] != block:
            rows = self.rows_of_block(block)
            try:
                grids: Grids = self._logits[rows.start : rows.stop].astype(np.float32)
            except (*_UNDECODABLE, OSError) as error:
                raise RisError(f"{self.path}: block {block} is damaged ({error}); run `ris status --repair`") from error
            if np.isnan(grids).any():
                raise RisError(f"{self.path}: block {block} is not written; run `ris dump-responses` again")
            grids.flags.writeable = False  # it is handed out again
            self._last_read = (block, grids)
        return self._last_read[1]

    def read_grids(self, rows: Sequence[int] | range) -> Grids:
        """Return the grids float32 (len(rows), h, w) of the given rows; in row order, each block is read once."""
        numbers = np.asarray(rows, np.int64)
        grids = np.empty((len(numbers), *self.grid_hw), np.float32)
        for block in np.unique(numbers // self.block_rows):
            inside = numbers // self.block_rows == block
            grids[inside] = self.read_block(int(block))[numbers[inside] % self.block_rows]
        return grids

    def rows_of_ref(self, ref_id: int) -> range:
        """Return the rows of a ref's K sentences (indices of `sent_id`, `image_hw`); RisError if unknown."""
        try:
            return self._rows[ref_id]
        except KeyError:
            raise RisError(
                f"{self.path}: holds no ref {ref_id}; the responses are of another split or dataset"
            ) from None

    @property
    def prms_score(self) -> Grids:
        """The PRMS score of each sentence's map, float32 (N,); NaN where it was not computed."""
        scores: Grids = self._group["prms_score"][:]
        return scores

    def select_maps(self) -> None:
        """Mark, of each ref, the map with the largest PRMS score (the first of equal ones) as selected.

        Raises RisError where a score is missing.
        """
        scores = self.prms_score
        if np.isnan(scores).any():
            sent_id = self.sent_id[int(np.argmax(np.isnan(scores)))]
            raise RisError(f"{self.path}: sentence {sent_id} has no PRMS score; run `ris dump-responses` again")
        chosen = np.zeros(len(self), dtype=bool)
        for rows in self._rows.values():
            chosen[rows.start + int(np.argmax(scores[rows.start : rows.stop]))] = True
        self._group["selected"][:] = chosen
        self.selected_rows = chosen

    @property
    def has_selection(self) -> bool:
        """Whether `select_maps` has run."""
        return bool(self.selected_rows.any())

    def selected(self, ref_id: int) -> int:
        """Return which of a ref's K maps PRMS chose, 0..K−1 as in `rows_of_ref`; RisError if none yet."""
        rows = self.rows_of_ref(ref_id)
        chosen = np.flatnonzero(self.selected_rows[rows.start : rows.stop])
        if not len(chosen):
            raise RisError(f"{self.path}: ref {ref_id} has no selected map; dump the responses with PRMS")
        return int(chosen[0])


def find_rows(path: Path, ref_id: npt.NDArray[np.int64]) -> dict[int, range]:
    """Return {ref_id: its rows}, in row order; RisError, naming `path`, where the rows of a ref are not adjacent."""
    starts = np.flatnonzero(np.diff(ref_id, prepend=ref_id[:1] - 1))
    ends = np.flatnonzero(np.diff(ref_id, append=ref_id[-1:] + 1)) + 1
    rows = {int(ref_id[start]): range(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)}
    if len(rows) < len(starts):
        raise RisError(f"{path}: the sentences of one ref must lie side by side; sort the records by ref_id")
    return rows


def _renew(path: Path, fresh: Path) -> None:
    """Put the files of the empty store `fresh` into the store at `path`, whose blocks stay."""
    shutil.rmtree(path / "selected" / "c", ignore_errors=True)  # follows from the scores
    for file in [file for file in fresh.rglob("*") if file.is_file()]:
        target = path / file.relative_to(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(fresh)
    fsync_tree(path)


def _add_array(group: Any, name: str, shape: tuple[int, ...], rows: int, dtype: str, fill: float) -> Any:
    """Return a new array of the group, cut into chunks of `rows` whole rows."""
    return group.create_array(
        name, shape=shape, chunks=(max(rows, 1), *shape[1:]), dtype=dtype, fill_value=fill, compressors=_CODEC
    )


def _check_layout(path: Path, group: Any) -> None:
    """Raise RisError where the metadata are not those of a response store.

    They say which codecs run and how much memory an array takes, and a store may come from elsewhere: so they are
    looked at before a value is read.
    """
    schema, input_size = group.attrs.get("schema"), group.attrs.get("input_size")
    if schema != SCHEMA:
        raise RisError(f"{path}: responses of schema {schema!r:.20}, not {SCHEMA}; run `ris dump-responses --force`")
    if type(input_size) is not int or not 1 <= input_size <= 2**14:
        raise _refuse(path, "input_size")
    n, h, w = group["logits"].shape
    rows = group["logits"].chunks[0]
    if not (n <= MAX_SENTENCES and min(h, w) >= 1 and max(h, w) <= MAX_SIDE and rows * h * w <= MAX_BLOCK_VALUES):
        raise _refuse(path, "logits")
    all_rows = max(n, 1)
    layouts: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...], float]] = {
        "logits": ((n, h, w), (rows, h, w), ("float32", "float16"), np.nan),
        "prms_score": ((n,), (rows,), ("float32",), np.nan),
        "selected": ((n,), (all_rows,), ("bool",), False),
        "sent_id": ((n,), (all_rows,), ("int64",), 0),
        "ref_id": ((n,), (all_rows,), ("int64",), 0),
        "image_hw": ((n, 2), (all_rows, 2), ("int32",), 0),
    }
    for name, (shape, chunks, dtypes, fill) in layouts.items():
        array = group[name]
        if (
            (array.shape, array.chunks, array.shards, array.filters) != (shape, chunks, None, ())
            or str(array.dtype) not in dtypes
            or array.compressors != (_CODEC,)
            or not np.array_equal(array.fill_value, fill, equal_nan=True)
        ):
            raise _refuse(path, name)


def _refuse(path: Path, name: str) -> RisError:
    return RisError(f"{path}: {name} is not that of responses; make them again: `ris dump-responses --force`")
