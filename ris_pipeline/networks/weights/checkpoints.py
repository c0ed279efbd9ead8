"""The checkpoints that TRIS released, by name: each is fetched once, and kept where torch keeps such files."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.errors import DownloadError
from ris_pipeline.process.console import Console
from ris_pipeline.process.units import format_size

RELEASES = "https://github.com/fawnliu/storage/releases/download"
_DATASETS = ("referit", "refcoco", "refcoco+", "refcocog-google", "refcocog-umd")
_CHUNK = 2**20  # bytes
# By TRIS's README: a release of each of the two networks, a file per data set.
CHECKPOINTS = {
    f"{prefix}-{dataset}": f"{release}/{network}_{dataset.replace('-', '_')}.pth"
    for prefix, release, network in (("tris", "v1.0.1", "stage2"), ("tris-step1", "v1.0.4", "stage1"))
    for dataset in _DATASETS
}


def find_checkpoint(path: Path, console: Console) -> Path:
    """Return `path`, or, where nothing is there and it is a name in CHECKPOINTS, the file of that name, fetched."""
    return fetch_checkpoint(str(path), console) if str(path) in CHECKPOINTS and not path.exists() else path


def fetch_checkpoint(name: str, console: Console) -> Path:
    """Return the file of a name in CHECKPOINTS, after fetching it where it is not there yet.

    Raises DownloadError, naming the address and the place for the file, where it cannot be fetched whole.
    """
    import torch

    url = f"{RELEASES}/{CHECKPOINTS[name]}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, replacing(file) as copy:
            n_bytes = int(answer.headers["Content-Length"])
            console.say(f"{name}: fetching {format_size(n_bytes)} from {url}")
            with console.progress(name, n_bytes) as advance:
                while chunk := answer.read(_CHUNK):
                    copy.write(chunk)
                    advance(len(chunk))
            if copy.tell() != n_bytes:
                raise OSError(f"{copy.tell():,} of {n_bytes:,} bytes came")
    except (OSError, TypeError) as error:  # a TypeError: an answer without a length is a page, not a file
        advice = f"get it from {url} yourself and give its path, or put it at {file}"
        raise DownloadError(f"{name} did not download ({error}): {advice}") from error
    return file
