"""The response store: its layout, crashes and resumes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE, Rule
from ris_pipeline.maps.store import ResponseStore, find_rows

BLOCK = 1024  # rows
N = 2 * BLOCK + 100  # three blocks, the last one short
REF_IDS = np.arange(N) // 3 + 500  # three sentences a ref; refs straddle the blocks' borders
SENT_IDS = np.arange(N)[::-1] * 10


def create(path: Path, **changes) -> ResponseStore:
    arguments = {
        "sent_id": SENT_IDS,
        "ref_id": REF_IDS,
        "image_hw": np.tile([480, 640], (N, 1)),
        "grid_hw": (2, 3),
        "input_size": 64,
        "rule": RESPONSE,
        "attributes": {"dataset": "shapes", "step1": "0123456789ab"},
    }
    return ResponseStore.create(path, **{**arguments, **changes})


def logits_of_block(block: int) -> np.ndarray:
    rows = range(block * BLOCK, min((block + 1) * BLOCK, N))
    return np.arange(rows.start * 6, rows.stop * 6, dtype=np.float32).reshape(-1, 2, 3)


@pytest.fixture(scope="module")
def whole_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("responses") / "val.zarr"
    store = create(path)
    for block in range(3):
        store.write_block(block, logits_of_block(block))
    return path


@pytest.fixture
def copy_of_whole(whole_path, tmp_path):
    return Path(shutil.copytree(whole_path, tmp_path / "val.zarr"))


def test_layout_on_disk(whole_path):
    group = zarr.open_group(str(whole_path), mode="r")
    dtypes = {name: (str(array.dtype), array.shape) for name, array in group.arrays()}
    assert dtypes == {
        "logits": ("float32", (N, 2, 3)),
        "sent_id": ("int64", (N,)),
        "ref_id": ("int64", (N,)),
        "image_hw": ("int32", (N, 2)),
        "prms_score": ("float32", (N,)),
        "selected": ("bool", (N,)),
    }
    assert group.metadata.zarr_format == 3
    logits = group["logits"]
    assert logits.chunks == (BLOCK, 2, 3)
    assert np.isnan(logits.fill_value)
    assert [(c.level, c.checksum) for c in logits.compressors] == [(3, True)]
    attributes = group.attrs.asdict()
    assert attributes.pop("rule") == {
        "via_input": True, "activation": "relu", "to_image": "corners", "normalise": "max", "threshold": 1e-9,
    }  # fmt: skip
    assert attributes == {"schema": 2, "input_size": 64, "dataset": "shapes", "step1": "0123456789ab"}


def test_reading(whole_path):
    store = ResponseStore.open(whole_path)
    everything = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
    assert (len(store), store.n_blocks, store.grid_hw, store.input_size) == (N, 3, (2, 3), 64)
    assert store.missing_blocks() == []
    np.testing.assert_array_equal(store.read_block(2), everything[2 * BLOCK :])
    np.testing.assert_array_equal(store.sent_id, SENT_IDS)
    scattered = [N - 1, 0, BLOCK, BLOCK - 1, 0]
    np.testing.assert_array_equal(store.read_grids(scattered), everything[scattered])
    assert store.rows_of_ref(502) == range(6, 9)
    straddling = 500 + BLOCK // 3
    assert store.rows_of_ref(straddling) == range(1023, 1026)
    np.testing.assert_array_equal(store.read_grids(store.rows_of_ref(straddling)), everything[1023:1026])


def test_a_block_that_was_read_cannot_be_changed(whole_path):
    with pytest.raises(ValueError, match="read-only"):
        ResponseStore.open(whole_path).read_block(0)[0] = 1.0


def test_refs_in_order_read_each_block_once(whole_path, monkeypatch):
    store = ResponseStore.open(whole_path)
    read = []
    get = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda array, rows: read.append(rows.start) or get(array, rows))
    for ref_id in np.unique(REF_IDS).tolist():
        store.read_grids(store.rows_of_ref(ref_id))
    assert read == [0, BLOCK, 2 * BLOCK]


def test_resume_after_a_crash(tmp_path):
    path = tmp_path / "val.zarr"
    create(path).write_block(1, logits_of_block(1))
    # what a killed writer leaves behind
    (path / "logits" / "c" / "0" / "0").mkdir(parents=True)
    (path / "logits" / "c" / "0" / "0" / "0.5f2a.partial").write_bytes(b"half a chu")
    store = ResponseStore.open(path, writable=True)
    assert store.missing_blocks() == [0, 2]
    with pytest.raises(RisError, match="block 0 is not written"):
        store.read_grids(store.rows_of_ref(500))
    store.write_block(0, logits_of_block(0))
    store.write_block(2, logits_of_block(2))
    assert store.missing_blocks() == []
    np.testing.assert_array_equal(store.read_grids(range(N)).ravel(), np.arange(N * 6))


def test_killed_while_writing_leaves_whole_blocks(tmp_path):
    """A process that dies by a signal amid its writes: every block is then whole or missing, none is half."""
    path = tmp_path / "val.zarr"
    create(path)
    script = (
        "import os, signal, sys, threading, time, numpy as np\n"
        "from pathlib import Path\n"
        "from ris_pipeline.maps.store import ResponseStore\n"
        "store = ResponseStore.open(Path(sys.argv[1]), writable=True)\n"
        "store.write_block(0, np.full((1024, 2, 3), 1, np.float32))\n"
        "kill = threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "kill.start()\n"
        "i = 1\n"
        "while True:\n"
        "    i += 1\n"
        "    store.write_block(0, np.full((1024, 2, 3), i, np.float32))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    store = ResponseStore.open(path)
    assert store.missing_blocks() == [1, 2]
    assert len(np.unique(store.read_block(0))) == 1  # one writing, not a mixture of two


def test_two_writers_of_different_blocks(tmp_path):
    path = tmp_path / "val.zarr"
    create(path)
    first, second = ResponseStore.open(path, writable=True), ResponseStore.open(path, writable=True)
    first.write_block(0, logits_of_block(0))
    second.write_block(1, logits_of_block(1))
    first.write_block(2, logits_of_block(2))
    assert second.missing_blocks() == []


def test_a_writer_leaves_alone_what_another_is_writing(tmp_path):
    """A chunk that is being written has another name, which is gone a moment later: a link to nothing stands for it."""
    store = create(tmp_path / "val.zarr")
    for array in ("logits", "prms_score"):
        chunks = store.path / array / "c"
        chunks.mkdir(exist_ok=True)
        (chunks / "1.0123.partial").symlink_to(chunks / "gone")
    store.write_block(0, logits_of_block(0), prms_score=np.zeros(BLOCK))
    assert store.missing_blocks(scored=True) == [1, 2]


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, np.float32(1e-45)])
def test_a_constant_block_is_not_taken_for_a_missing_one(tmp_path, value):
    store = create(tmp_path / "val.zarr")
    store.write_block(0, np.full((BLOCK, 2, 3), value, np.float32))
    assert store.missing_blocks() == [1, 2]
    assert (store.read_block(0) == np.float32(value)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    store = create(tmp_path / "val.zarr")
    logits = logits_of_block(1)
    logits[5, 1, 2] = value
    with pytest.raises(RisError, match=f"sentence {SENT_IDS[BLOCK + 5]} "):
        store.write_block(1, logits)
    with pytest.raises(RisError, match=f"sentence {SENT_IDS[BLOCK + 5]} "):
        store.write_block(1, logits_of_block(1), prms_score=np.where(np.arange(BLOCK) == 5, value, 0))
    assert store.missing_blocks() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(BLOCK - 1, 2, 3), (BLOCK, 3, 2), (BLOCK, 6), (N, 2, 3)])
def test_only_whole_blocks_are_written(tmp_path, shape):
    store = create(tmp_path / "val.zarr")
    with pytest.raises(ValueError, match="has shape"):
        store.write_block(0, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="scores of shape"):
        store.write_block(0, logits_of_block(0), prms_score=np.zeros(7, np.float32))
    assert store.missing_blocks() == [0, 1, 2]


def test_there_is_no_fourth_block(whole_path):
    store = ResponseStore.open(whole_path)
    for block in (-1, 3):
        with pytest.raises(IndexError):
            store.read_block(block)


def test_damage_is_noticed_and_repaired(copy_of_whole):
    chunk = copy_of_whole / "logits" / "c" / "1" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    chunk.write_bytes(damaged)
    store = ResponseStore.open(copy_of_whole, writable=True)
    with pytest.raises(RisError, match="block 1 is damaged"):
        store.read_block(1)
    assert store.missing_blocks() == [1]
    store.write_block(1, logits_of_block(1))
    np.testing.assert_array_equal(store.read_block(1), logits_of_block(1))


def test_a_truncated_chunk_is_missing(copy_of_whole):
    chunk = copy_of_whole / "logits" / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    assert ResponseStore.open(copy_of_whole).missing_blocks() == [2]


def test_rewriting_is_seen_by_the_writer(copy_of_whole):
    store = ResponseStore.open(copy_of_whole, writable=True)
    assert store.read_block(0)[1, 0, 0] == 6
    store.write_block(0, logits_of_block(0) + 1)
    assert store.read_block(0)[1, 0, 0] == 7


def test_prms_selection(copy_of_whole):
    store = ResponseStore.open(copy_of_whole, writable=True)
    assert np.isnan(store.prms_score).all()
    assert not store.selected_rows.any()
    with pytest.raises(RisError, match="ref 500 has no selected map"):
        store.selected(500)
    scores = np.zeros(N, np.float32)
    scores[[1, 5, 1025]] = 2.0  # ref 500: its second; 501: its third; rows 1023-1025: the third, in the next block
    for block in (0, 2):
        rows = store.rows_of_block(block)
        store.write_block(block, logits_of_block(block), prms_score=scores[rows.start : rows.stop])
    with pytest.raises(RisError, match=f"sentence {SENT_IDS[BLOCK]} has no PRMS score"):
        store.select_maps()
    store.write_block(1, logits_of_block(1), prms_score=scores[BLOCK : 2 * BLOCK])
    store.select_maps()
    reader = ResponseStore.open(copy_of_whole)
    np.testing.assert_array_equal(reader.prms_score, scores)
    assert [reader.selected(ref) for ref in (500, 501, 502, 500 + BLOCK // 3)] == [1, 2, 0, 2]
    assert reader.selected_rows.sum() == len(np.unique(REF_IDS))
    assert reader.missing_blocks() == []


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_find_rows_covers_all_rows(sizes, random):
    ids = random.sample(range(-50, 50), len(sizes))
    ref_id = np.repeat(np.array(ids, np.int64), sizes)
    rows = find_rows(Path("x.zarr"), ref_id)
    assert list(rows) == ids
    assert [len(span) for span in rows.values()] == sizes
    assert [row for span in rows.values() for row in span] == list(range(sum(sizes)))


def test_a_split_without_sentences(tmp_path):
    store = create(tmp_path / "val.zarr", sent_id=[], ref_id=[], image_hw=[])
    assert (len(store), store.n_blocks, store.missing_blocks()) == (0, 0, [])


def test_create_refuses_what_it_cannot_look_up(tmp_path):
    path = tmp_path / "val.zarr"
    small = {"image_hw": [(4, 4)] * 3}
    with pytest.raises(RisError, match="side by side"):
        create(path, sent_id=[1, 2, 3], ref_id=[1, 2, 1], **small)
    with pytest.raises(RisError, match="one sent_id"):
        create(path, sent_id=[1, 2, 1], ref_id=[1, 1, 2], **small)
    assert not path.exists()


def test_create_keeps_the_blocks_of_a_broken_run_and_nothing_else(copy_of_whole, whole_path):
    """Whatever is damaged beside them: names, ids and choice are written anew."""
    store = ResponseStore.open(copy_of_whole, writable=True)
    for block in (0, 1):
        rows = store.rows_of_block(block)
        store.write_block(block, logits_of_block(block), prms_score=np.ones(len(rows), np.float32))
    for file in [*copy_of_whole.rglob("zarr.json"), *copy_of_whole.glob("*_id/c/*"), copy_of_whole / "image_hw/c/0/0"]:
        file.write_bytes(file.read_bytes()[:-7])
    store = create(copy_of_whole)
    assert store.missing_blocks() == []
    assert store.missing_blocks(scored=True) == [2]
    for block in range(3):
        np.testing.assert_array_equal(store.read_block(block), logits_of_block(block))
    np.testing.assert_array_equal(store.sent_id, SENT_IDS)
    for file in [path for path in whole_path.rglob("*") if path.is_file()]:
        assert (copy_of_whole / file.relative_to(whole_path)).read_bytes() == file.read_bytes(), file
    assert [path.name for path in copy_of_whole.parent.iterdir()] == [copy_of_whole.name]


def test_create_clears_what_a_crashed_create_left(tmp_path):
    left = tmp_path / "val.zarr.new"
    left.mkdir()
    (left / "zarr.json").write_text("{")
    assert create(tmp_path / "val.zarr").missing_blocks() == [0, 1, 2]
    assert not left.exists()


def test_open_errors(tmp_path, copy_of_whole):
    with pytest.raises(RisError, match=r"nowhere\.zarr: no responses here"):
        ResponseStore.open(tmp_path / "nowhere.zarr")
    with pytest.raises(RisError, match="no responses here"):
        ResponseStore.open(tmp_path)
    with pytest.raises(RisError, match="holds no ref 3;"):
        ResponseStore.open(copy_of_whole).rows_of_ref(3)
    zarr.open_group(str(copy_of_whole), mode="r+").attrs["schema"] = 0
    with pytest.raises(RisError, match="schema 0, not 2"):
        ResponseStore.open(copy_of_whole)


def test_reading_does_not_allow_writing(whole_path):
    with pytest.raises(ValueError, match="read-only"):
        ResponseStore.open(whole_path).write_block(0, logits_of_block(0))


def test_large_grids_are_kept_in_small_blocks_at_half_the_precision(tmp_path):
    path = tmp_path / "val.zarr"
    rule = Rule(via_input=False, activation="sigmoid", to_image="centres", normalise="none", threshold=0.5)
    ids = np.arange(50)
    sizes = np.full((50, 2), 320)
    store = create(path, sent_id=ids, ref_id=ids, image_hw=sizes, grid_hw=(320, 320), rule=rule, dtype="float16")
    assert store.block_rows == 20  # of 204,800 bytes, 4 MB hold 20
    grids = np.random.default_rng(0).normal(size=(20, 320, 320)).astype(np.float32)
    for block in (0, 1, 2):
        store.write_block(block, grids[: len(store.rows_of_block(block))])
    read = ResponseStore.open(path)
    assert (read.rule, read.block_rows, read.missing_blocks()) == (rule, 20, [])
    np.testing.assert_array_equal(read.read_grids([41]), grids[1:2].astype(np.float16).astype(np.float32))
    assert read.read_block(2).dtype == np.float32
    with pytest.raises(RisError, match="not finite"):  # more than half precision holds
        store.write_block(0, np.full((20, 320, 320), 7e4, np.float32))


@pytest.mark.parametrize(
    ("array", "key", "value"),
    [
        ("logits", "shape", [N, 2, 3000]),
        ("logits", "data_type", "float64"),
        ("logits", "codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        ("logits", "chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [N, 2, 3]}}),
        ("sent_id", "shape", [2**40]),
        ("selected", "fill_value", 1),
    ],
)
def test_other_layouts_are_refused_before_a_value_is_read(copy_of_whole, array, key, value):
    file = copy_of_whole / array / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(RisError, match=r"val\.zarr: .*not .*responses"):
        ResponseStore.open(copy_of_whole)
