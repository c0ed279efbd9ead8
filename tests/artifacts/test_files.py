import pytest

from ris_pipeline.artifacts.files import (
    make_folder,
    remove_unfinished,
    replace_folder,
    replacing,
    restore_folder,
    write_json,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fsync", [True, False])
def test_a_file_is_replaced_as_a_whole(fsync, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path, fsync=fsync) as file:
        file.write(b"ne")
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["a.bin"]


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError), replacing(path) as file:
        file.write(b"half" + None)
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert names_in(tmp_path) == ["a.json"]


def test_what_was_being_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "train.zarr" / "c").mkdir(parents=True)
    (tmp_path / "model.safetensors.new").mkdir()
    (tmp_path / "model.safetensors.new" / "model.safetensors").touch()
    (tmp_path / "train.zarr" / "c" / "0.5f2a.partial").touch()
    (tmp_path / "train.zarr" / "c" / "0").touch()
    (tmp_path / "7.png.0a1b2c3d.new").touch()
    (tmp_path / "7.png").touch()
    remove_unfinished(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "7.png",
        "train.zarr/c/0",
    ]
    assert names_in(tmp_path) == ["7.png", "train.zarr"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "old", tmp_path / "new")
    assert names_in(tmp_path) == ["old"]
    assert names_in(tmp_path / "old") == ["new"]


def test_a_replacement_that_was_killed_half_way_is_undone(tmp_path):
    """Killed after the old folder was moved away and before the new one came."""
    (tmp_path / "a.old").mkdir()
    (tmp_path / "a.old" / "old").touch()
    restore_folder(tmp_path / "a")
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "a") == ["old"]


def test_a_replacement_that_was_killed_near_its_end_is_completed(tmp_path):
    for name in ("a", "a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    restore_folder(tmp_path / "a")
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "a") == ["a"]


def test_folders_are_made_with_those_above(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
