import errno
import hashlib

import pytest

from loopback import PAGE, serve
from ris_pipeline.errors import DownloadError
from ris_pipeline.process import download as module
from ris_pipeline.process.console import Console
from ris_pipeline.process.download import download

DATA = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()
QUIET = Console(quiet=True)


@pytest.fixture
def server():
    with serve() as server:
        yield server


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_its_size_told(server, tmp_path, capsys):
    url = server.host("/a.zip", DATA)
    download([url], tmp_path / "a.zip", Console(), n_bytes=len(DATA), digest=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert names(tmp_path) == ["a.zip"]
    assert f"fetching 10.2 kB from {url}" in capsys.readouterr().err


@pytest.mark.parametrize("known", [{}, {"n_bytes": len(DATA), "digest": SHA256}], ids=["unknown", "known"])
def test_what_breaks_off_goes_on_where_it_broke_off(server, tmp_path, known):
    url = server.host("/a.zip", DATA, breaks_after=4000)
    download([url], tmp_path / "a.zip", QUIET, **known)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, "bytes=4000-", "bytes=8000-"]


def test_a_later_call_goes_on_too(server, tmp_path):
    url = server.host("/a.zip", DATA, breaks_after=4000, has_ranges=False)
    with pytest.raises(DownloadError, match=r"4,000 of 10,240 bytes came.*kept, and the same command goes on"):
        download([url], tmp_path / "a.zip", QUIET)
    server.asked.clear()
    server.host("/a.zip", DATA)
    download([url], tmp_path / "a.zip", QUIET)
    assert server.asked == [("/a.zip", "bytes=4000-")]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_host_without_ranges_begins_anew(server, tmp_path):
    (tmp_path / f"a.zip.{SHA256[7:15]}.part").write_bytes(b"of another file")
    url = server.host("/a.zip", DATA, has_ranges=False)
    download([url], tmp_path / "a.zip", QUIET, digest=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA


@pytest.mark.parametrize("old", [b"x" * 5000, b"x" * len(DATA), b"x" * 20_000], ids=["shorter", "as long", "longer"])
def test_a_part_that_is_not_of_the_file_is_fetched_anew(server, tmp_path, old):
    (tmp_path / f"a.zip.{SHA256[7:15]}.part").write_bytes(old)
    download([server.host("/a.zip", DATA)], tmp_path / "a.zip", QUIET, n_bytes=len(DATA), digest=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    ("data", "behaviour", "message"),
    [
        (PAGE, {"kind": "text/html; charset=utf-8"}, "it is a web page"),
        (PAGE, {}, "it is a web page"),
        (DATA, {"length": 9000}, r"it has 9,000 bytes, not 10,240"),
        (DATA, {"length": 20_000}, r"it has 20,000 bytes, not 10,240"),
        (DATA + b"more", {"length": 0}, "it sends more than 10,240 bytes"),
        (DATA[:-1] + b"!", {}, "it sent other bytes: sha256 "),
        (b"", {"length": 0}, "0 of 10,240 bytes came"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_the_file_is_refused_and_the_next_source_asked(
    server, tmp_path, data, behaviour, message
):
    bad = server.host("/bad.zip", data, **behaviour)
    with pytest.raises(DownloadError, match=rf"a\.zip did not download \({bad}: {message}"):
        download([bad], tmp_path / "a.zip", QUIET, n_bytes=len(DATA), digest=SHA256)
    assert "a.zip" not in names(tmp_path)
    gone, good = f"{server.address}/gone.zip", server.host("/good.zip", DATA)
    download([gone, bad, good], tmp_path / "a.zip", QUIET, n_bytes=len(DATA), digest=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert names(tmp_path) == ["a.zip"]


def test_where_size_and_digest_are_unknown_an_answer_must_say_its_size(server, tmp_path):
    with pytest.raises(DownloadError, match="it does not say how large it is"):
        download([server.host("/a.zip", DATA, length=0)], tmp_path / "a.zip", QUIET)


def test_halves_of_two_sources_are_not_joined_where_no_digest_would_tell(server, tmp_path):
    first = server.host("/first.zip", b"a" * 10_000, breaks_after=4000, has_ranges=False)
    second = server.host("/second.zip", DATA)
    download([first, second], tmp_path / "a.zip", QUIET)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_another_part_than_was_asked_for_is_refused(server, tmp_path):
    url = server.host("/a.zip", DATA, breaks_after=4000, shift=100)
    with pytest.raises(DownloadError, match="it gives another part of the file"):
        download([url], tmp_path / "a.zip", QUIET)


def test_every_source_is_named(server, tmp_path):
    sources = [f"{server.address}/one.zip", "http://127.0.0.1:1/two.zip"]
    with pytest.raises(DownloadError, match=r"one\.zip: HTTP Error 404.*two\.zip: .*refused") as caught:
        download(sources, tmp_path / "a.zip", QUIET)
    assert "same command" not in str(caught.value)


def test_a_full_disk_is_no_fault_of_the_source(server, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        download([server.host("/a.zip", DATA)], tmp_path / "a.zip", QUIET)
