"""Artifacts that are copied, renamed, or moved without their links work for all that reads them."""

import shutil

import pytest

from ris_pipeline import Segmenter


@pytest.fixture
def copy_without_links(scored, tmp_path):
    """As `cp -rL` and `scp -r` copy: each `latest` a folder of its own."""
    shutil.copytree(scored, tmp_path / "copy")
    assert (tmp_path / "copy" / "runs" / "tiny" / "step2" / "latest-pseudo").is_dir()
    assert not (tmp_path / "copy" / "runs" / "tiny" / "step2" / "latest-pseudo").is_symlink()
    return tmp_path / "copy"


@pytest.fixture
def copy_with_links_lost(scored, tmp_path):
    """As a zip without links leaves it."""
    root = tmp_path / "copy"
    shutil.copytree(scored, root, symlinks=True)
    for link in (root / "runs").glob("*/*/latest*"):
        link.unlink()
    return root


@pytest.mark.parametrize("kind", ["copy_without_links", "copy_with_links_lost"])
def test_a_copy_of_the_runs_is_up_to_date(kind, request, chain, ris, capfd):
    root = request.getfixturevalue(kind)
    for command in (*chain, ["score"]):
        capfd.readouterr()
        ris(root, *command)
        assert "up to date" in capfd.readouterr().err, command
    ris(root, "report")
    ris(root, "status", "--verify")
    image = next((root / "data" / "tiny" / "images").glob("*.jpg"))
    ris(root, "predict", image, "the red square", "--out", root / "out")
    assert "step2" in capfd.readouterr().err
    ris(root, "train-step1", "--set", "epochs=2")  # writes beside what was copied


def test_a_renamed_artifact_segments(scored, tmp_path, ris, capfd):
    mine = tmp_path / "my network"
    shutil.copytree(scored / "runs" / "tiny" / "step2" / "latest-pseudo", mine)
    image = next((scored / "data" / "tiny" / "images").glob("*.jpg"))
    ris(scored, "predict", image, "the red square", "--out", tmp_path / "out", "--checkpoint", mine)
    here = Segmenter.load(scored / "runs" / "tiny" / "step2" / "latest-pseudo")(image, "the red square")
    assert (Segmenter.load(mine)(image, "the red square").mask == here.mask).all()
