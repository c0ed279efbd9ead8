"""The checkpoints that TRIS released, by name: each is fetched once, and kept where torch keeps such files."""

from __future__ import annotations

from pathlib import Path

from ris_pipeline.errors import DownloadError
from ris_pipeline.process.console import Console
from ris_pipeline.process.download import download

RELEASES = "https://github.com/fawnliu/storage/releases/download"
_DATASETS = ("referit", "refcoco", "refcoco+", "refcocog-google", "refcocog-umd")
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
        download([url], file, console)
    except DownloadError as error:
        raise DownloadError(f"{error}: get it from {url} yourself and give its path, or put it at {file}") from error
    return file
