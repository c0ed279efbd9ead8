import pytest
import torch

from loopback import serve
from ris_pipeline.errors import DownloadError
from ris_pipeline.networks.weights import checkpoints
from ris_pipeline.process.console import Console


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in the place of the releases."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with serve() as server:
        monkeypatch.setattr(checkpoints, "RELEASES", server.address)
        yield server


def test_a_name_is_fetched_once(server, tmp_path, capsys):
    url = server.host("/v1.0.1/stage2_refcocog_umd.pth", b"x" * 3_000_000)
    for _ in range(2):
        file = checkpoints.fetch_checkpoint("tris-refcocog-umd", Console(quiet=False))
    assert file == tmp_path / "hub" / "checkpoints" / "stage2_refcocog_umd.pth"
    assert file.read_bytes() == b"x" * 3_000_000
    assert server.asked == [("/v1.0.1/stage2_refcocog_umd.pth", None)]
    assert f"fetching 3.0 MB from {url}" in capsys.readouterr().err


def test_what_is_not_there_is_told_with_its_address(server, tmp_path):
    with pytest.raises(DownloadError, match=r"HTTP Error 404.*v1\.0\.1/stage2_refcoco\+\.pth yourself"):
        checkpoints.fetch_checkpoint("tris-refcoco+", Console(quiet=True))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_half_a_file_is_no_file(server, tmp_path):
    server.host("/v1.0.1/stage2_refcoco.pth", b"x" * 1000, breaks_after=300, has_ranges=False)
    with pytest.raises(DownloadError, match="300 of 1,000 bytes came"):
        checkpoints.fetch_checkpoint("tris-refcoco", Console(quiet=True))
    assert not (tmp_path / "hub" / "checkpoints" / "stage2_refcoco.pth").exists()
