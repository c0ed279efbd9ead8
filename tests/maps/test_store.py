"""The response store under crashes and resumes, and its rule against a bilinear resampling written anew."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pipeline.errors import RisError
from ris_pipeline.maps import store as responses
from ris_pipeline.maps.store import BLOCK, ResponseStore, compute_map


def source_positions(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """Where n_out samples lie among n_in: end to end, or at centres of equal cells, clamped to the rim."""
    i = np.arange(n_out)
    if align_corners:
        return i * (n_in - 1) / max(n_out - 1, 1)
    return np.clip((i + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)


def bilinear(grid: np.ndarray, hw: tuple[int, int], align_corners: bool) -> np.ndarray:
    """One map at a time, rows then columns, by numpy's own linear interpolation in float64."""
    h, w = grid.shape
    ys, xs = source_positions(h, hw[0], align_corners), source_positions(w, hw[1], align_corners)
    columns = np.stack([np.interp(ys, np.arange(h), grid[:, x]) for x in range(w)], axis=1)
    return np.stack([np.interp(xs, np.arange(w), row) for row in columns])


def rule(grid: np.ndarray, input_size: int, image_hw: tuple[int, int]) -> np.ndarray:
    at_input = np.maximum(bilinear(grid.astype(np.float64), (input_size, input_size), align_corners=False), 0)
    at_image = bilinear(at_input, image_hw, align_corners=True)
    return at_image / (at_image.max() + 1e-5)


def test_the_resampling_of_this_test_by_hand():
    grid = np.array([[0.0, 4.0]])
    np.testing.assert_allclose(bilinear(grid, (1, 4), align_corners=False), [[0, 1, 3, 4]])
    np.testing.assert_allclose(bilinear(grid, (1, 5), align_corners=True), [[0, 1, 2, 3, 4]])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    grid_hw=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    input_size=st.integers(6, 24),
    image_hw=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_compute_map_follows_the_rule(seed, grid_hw, input_size, image_hw):
    grids = np.random.default_rng(seed).normal(scale=5, size=(3, *grid_hw)).astype(np.float32)
    maps = compute_map(torch.from_numpy(grids), input_size, image_hw).numpy()
    assert maps.shape == (3, *image_hw)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() < 1
    for grid, computed in zip(grids, maps, strict=True):
        np.testing.assert_allclose(computed, rule(grid, input_size, image_hw), atol=2e-5)


def test_compute_map_by_hand():
    # 2×2 → input 4×4: each row 0 1 3 4. The image is 4×4 too, so the second step changes nothing.
    grid = torch.tensor([[[0.0, 4.0], [0.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    maps = compute_map(grid, 4, (4, 4))
    np.testing.assert_allclose(maps[0].numpy(), np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-5)
    assert not maps[1].any()  # nothing positive: zeros, no division by zero


def test_compute_map_normalises_each_map_by_itself():
    grid = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    one, twice_as_high = compute_map(torch.cat([grid, 2 * grid]), 20, (30, 40))
    np.testing.assert_allclose(one.numpy(), twice_as_high.numpy(), atol=1e-4)


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
    assert attributes.pop("rule") == responses.RULE
    assert attributes == {"schema": 1, "input_size": 64, "dataset": "shapes", "step1": "0123456789ab"}


def test_reading(whole_path):
    store = ResponseStore.open(whole_path)
    everything = np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3)
    assert (len(store), store.n_blocks, store.grid_hw, store.input_size) == (N, 3, (2, 3), 64)
    assert store.missing_blocks() == []
    np.testing.assert_array_equal(store.read_block(2), everything[2 * BLOCK :])
    np.testing.assert_array_equal(store.sent_id, SENT_IDS)
    scattered = [N - 1, 0, BLOCK, BLOCK - 1, 0]
    np.testing.assert_array_equal(store.logits_of(scattered), everything[scattered])
    assert store.rows_of_ref(502) == range(6, 9)
    straddling = 500 + BLOCK // 3
    assert store.rows_of_ref(straddling) == range(1023, 1026)
    np.testing.assert_array_equal(store.logits_of_ref(straddling), everything[1023:1026])
    refs = list(store.iter_refs())
    assert [ref_id for ref_id, _ in refs] == list(dict.fromkeys(REF_IDS.tolist()))
    np.testing.assert_array_equal(np.concatenate([logits for _, logits in refs]), everything)


def test_a_block_that_was_read_cannot_be_changed(whole_path):
    with pytest.raises(ValueError, match="read-only"):
        ResponseStore.open(whole_path).read_block(0)[0] = 1.0


def test_refs_in_order_read_each_block_once(whole_path, monkeypatch):
    store = ResponseStore.open(whole_path)
    read = []

    class Counting:
        def __getitem__(self, rows):
            read.append(rows.start // BLOCK)
            return logits_of_block(read[-1])

    monkeypatch.setattr(store, "_logits", Counting())
    assert len(list(store.iter_refs())) == len(np.unique(REF_IDS))
    assert read == [0, 1, 2]


def test_resume_after_a_crash(tmp_path):
    path = tmp_path / "val.zarr"
    create(path).write_block(1, logits_of_block(1))
    # what a killed writer leaves behind
    (path / "logits" / "c" / "0" / "0").mkdir(parents=True)
    (path / "logits" / "c" / "0" / "0" / "0.5f2a.partial").write_bytes(b"half a chu")
    store = ResponseStore.open(path, writable=True)
    assert store.missing_blocks() == [0, 2]
    with pytest.raises(RisError, match="block 0 is not written"):
        store.logits_of_ref(500)
    store.write_block(0, logits_of_block(0))
    store.write_block(2, logits_of_block(2))
    assert store.missing_blocks() == []
    np.testing.assert_array_equal(store.logits_of(range(N)).ravel(), np.arange(N * 6))


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
def test_rows_by_ref_covers_all_rows(sizes, random):
    ids = random.sample(range(-50, 50), len(sizes))
    ref_id = np.repeat(np.array(ids, np.int64), sizes)
    rows = responses._rows_by_ref(Path("x.zarr"), ref_id)
    assert list(rows) == ids
    assert [len(span) for span in rows.values()] == sizes
    assert [row for span in rows.values() for row in span] == list(range(sum(sizes)))


def test_a_split_without_sentences(tmp_path):
    store = create(tmp_path / "val.zarr", sent_id=[], ref_id=[], image_hw=[])
    assert (len(store), store.n_blocks, store.missing_blocks(), list(store.iter_refs())) == (0, 0, [], [])


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
    for file in [one for one in whole_path.rglob("*") if one.is_file()]:
        assert (copy_of_whole / file.relative_to(whole_path)).read_bytes() == file.read_bytes(), file
    assert [one.name for one in copy_of_whole.parent.iterdir()] == [copy_of_whole.name]


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
        ResponseStore.open(copy_of_whole).logits_of_ref(3)
    zarr.open_group(str(copy_of_whole), mode="r+").attrs["schema"] = 0
    with pytest.raises(RisError, match="schema 0, not 1"):
        ResponseStore.open(copy_of_whole)


def test_reading_does_not_allow_writing(whole_path):
    with pytest.raises(ValueError, match="read-only"):
        ResponseStore.open(whole_path).write_block(0, logits_of_block(0))
