import http.client
import http.server
import threading

import pytest
import torch

from ris_pipeline.errors import DownloadError
from ris_pipeline.networks.weights import checkpoints
from ris_pipeline.process.console import Console


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """A folder that a local server answers from, in place of the releases, and the addresses it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "served")

        def log_message(self, *_):
            asked.append(self.path)

    (tmp_path / "served" / "v1.0.1").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(checkpoints, "RELEASES", f"http://127.0.0.1:{server.server_port}")
        yield tmp_path / "served", asked
        server.shutdown()


def test_a_name_is_fetched_once(releases, tmp_path, capsys):
    served, asked = releases
    (served / "v1.0.1" / "stage2_refcocog_umd.pth").write_bytes(b"x" * 3_000_000)
    for _ in range(2):
        file = checkpoints.fetch_checkpoint("tris-refcocog-umd", Console(quiet=False))
    assert file == tmp_path / "hub" / "checkpoints" / "stage2_refcocog_umd.pth"
    assert file.read_bytes() == b"x" * 3_000_000
    assert asked == ["/v1.0.1/stage2_refcocog_umd.pth"]
    assert "tris-refcocog-umd: fetching 3.0 MB from http" in capsys.readouterr().err


def test_what_is_not_there_is_told_with_its_address(releases, tmp_path):
    with pytest.raises(DownloadError, match=r"HTTP Error 404.*v1\.0\.1/stage2_refcoco\+\.pth yourself"):
        checkpoints.fetch_checkpoint("tris-refcoco+", Console(quiet=True))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_half_a_file_is_no_file(releases, tmp_path, monkeypatch):
    served, _ = releases
    (served / "v1.0.1" / "stage2_refcoco.pth").write_bytes(b"x" * 1000)
    read = http.client.HTTPResponse.read

    def break_off(answer, *_):
        return read(answer, 300) if answer.length > 800 else b""

    monkeypatch.setattr(http.client.HTTPResponse, "read", break_off)
    with pytest.raises(DownloadError, match="300 of 1,000 bytes came"):
        checkpoints.fetch_checkpoint("tris-refcoco", Console(quiet=True))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
