from pathlib import Path

import pytest

from ris_pipeline.errors import suggest_path


@pytest.mark.parametrize(
    ("mistyped", "hint"),
    [
        ("photos/dgo.jpg", "; did you mean {root}/photos/dog.jpg?"),
        ("photo/dog.jpg", "; did you mean {root}/photos/dog.jpg?"),
        ("photo/cat.jpg", "; did you mean {root}/photos?"),  # the folder is near, what is looked for is not in it
        ("photos/dog.png", "; did you mean {root}/photos/dog.jpg?"),
        ("photos/zebra", ""),
        ("photos/dog.jpg/x", ""),  # a file has nothing in it
        ("photos/dog.jpg", ""),
    ],
)
def test_the_nearest_existing_path(tmp_path: Path, mistyped, hint):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").touch()
    assert suggest_path(tmp_path / mistyped) == hint.format(root=tmp_path)


def test_a_relative_path_stays_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("refcoco.toml").touch()
    assert suggest_path(Path("refcco.toml")) == "; did you mean refcoco.toml?"
