"""Whatever byte of an artifact is flipped, `find_damage` says so; the files are those that the stages write."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ris_pipeline.artifacts.find import list_artifacts, load_artifact
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.artifacts.verify import check_whole, find_damage
from ris_pipeline.errors import RisError

KINDS = ("step1", "responses", "pseudolabels", "scores")
N_SENTENCES = 1030  # two blocks


def write_step1(folder: Path) -> dict[str, int]:
    from safetensors.numpy import save_file

    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.5}\n')
    return {"steps": 1}


def write_responses(folder: Path) -> dict[str, int]:
    from ris_pipeline.maps.rule import RESPONSE
    from ris_pipeline.maps.store import ResponseStore

    refs = np.arange(N_SENTENCES) // 3
    store = ResponseStore.create(
        folder / "val.zarr",
        sent_id=np.arange(N_SENTENCES) + 7,
        ref_id=refs,
        image_hw=[(4, 5)] * N_SENTENCES,
        grid_hw=(2, 2),
        rule=RESPONSE,
        input_size=64,
        attributes={"step1": "0123456789ab"},
    )
    rng = np.random.default_rng(0)
    for block in range(store.n_blocks):
        n = len(store.rows_of_block(block))
        store.write_block(block, rng.normal(size=(n, 2, 2)).astype(np.float32), rng.random(n).astype(np.float32))
    store.select_maps()
    return {"sentences": N_SENTENCES}


def write_pseudolabels(folder: Path) -> dict[str, int]:
    from ris_pipeline.datasets.io.labels import save_label

    (folder / "seeds").mkdir()
    for ref_id in (3, 12):
        save_label(folder / f"{ref_id}.png", np.eye(5, 4, dtype=np.uint8))
        save_label(folder / "seeds" / f"{ref_id}.png", np.eye(5, 4, dtype=np.uint8) * 255)
    save_label(folder / "contact-sheet.png", np.zeros((3, 3), np.uint8))
    return {"refs": 2}


def write_scores(folder: Path) -> dict[str, int]:
    (folder / "scores.json").write_text('{"metrics": {"miou": 12.5}}\n')
    (folder / "outcomes.csv").write_text("ref_id,sent_id\n1,2\n")
    return {"sentences": 1}


WRITERS = dict(zip(KINDS, (write_step1, write_responses, write_pseudolabels, write_scores), strict=True))


def make(runs: Path, stage: str) -> Path:
    request = Request(runs, "shapes", stage, {"lr": 1e-4, "text": "größte"}, {"data": "d0"}, seed=3)
    with publish(request) as work:
        work.counts |= WRITERS[stage](work.path)
    return request.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with one artifact of each kind; a test leaves them as they were."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in KINDS:
        make(folder, stage)
    return folder


def files_of(runs: Path) -> list[Path]:
    (*folders,) = (list_artifacts(runs, "shapes", stage)[0] for stage in KINDS)
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def artifact_of(runs: Path, path: Path) -> Path:
    return runs / Path(*path.relative_to(runs).parts[:3])


def test_what_is_whole_has_no_damage(runs):
    names = {path.name for path in files_of(runs)}
    assert {"manifest.json", "files.json", "model.safetensors", "12.png", "zarr.json"} <= names
    for stage in KINDS:
        (folder,) = list_artifacts(runs, "shapes", stage)
        assert find_damage(folder) == []
        check_whole(folder)


def flip_and_look(runs: Path, path: Path, offset: int, bits: int) -> list[str]:
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[offset] ^= bits
    path.write_bytes(spoilt)
    try:
        return [damage.file for damage in find_damage(artifact_of(runs, path))]
    finally:
        path.write_bytes(whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_flipped_byte_is_found(runs, data):
    path = data.draw(st.sampled_from(files_of(runs)))
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    found = flip_and_look(runs, path, offset, data.draw(st.integers(1, 255)))
    assert found == [path.relative_to(artifact_of(runs, path)).as_posix()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flipped_bytes_all_over_every_file_are_found(runs):
    rng = np.random.default_rng(0)
    n_flipped = 0
    for path in files_of(runs):
        size = path.stat().st_size
        for offset in range(0, size, max(size // 40, 1)):
            found = flip_and_look(runs, path, offset, int(rng.integers(1, 256)))
            assert found == [path.relative_to(artifact_of(runs, path)).as_posix()], offset
            n_flipped += 1
    print(f"{n_flipped} bytes flipped, all found")


def test_missing_and_surplus_files_are_named(tmp_path):
    folder = make(tmp_path, "scores")
    (folder / "outcomes.csv").unlink()
    (folder / "notes.txt").touch()
    assert [str(damage) for damage in find_damage(folder)] == [
        "notes.txt: not part of what was published; remove it",
        "outcomes.csv: missing",
    ]
    with pytest.raises(RisError, match=r"damaged: notes\.txt: not part"):
        check_whole(folder)


def test_an_artifact_may_be_renamed_and_copied(tmp_path):
    folder = make(tmp_path, "scores")
    other = tmp_path / "my scores"
    folder.rename(other)
    assert find_damage(other) == []
    assert load_artifact(other).digest == folder.name


@pytest.mark.parametrize("name", ["manifest.json", "files.json"])
def test_without_its_records_nothing_else_is_judged(tmp_path, name):
    folder = make(tmp_path, "scores")
    (folder / "outcomes.csv").unlink()
    for spoilt in ("{}", "", "[" * 100_000):
        (folder / name).write_text(spoilt)
        assert [str(damage) for damage in find_damage(folder)] == [f"{name}: not the bytes that were published"]
    (folder / name).unlink()
    assert [str(damage) for damage in find_damage(folder)] == [f"{name}: missing"]
