"""The files of a data set from the addresses in its card: downloaded, checked, and unpacked to where the card looks."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ris_pipeline.artifacts.files import make_folder, replacing, write_json
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.datasets.card import Card, Download
from ris_pipeline.datasets.check import MISSING, UNREADABLE, check_dataset
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.datasets.load import missing_paths
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.process.console import Console
from ris_pipeline.process.download import download, find_fault
from ris_pipeline.process.units import format_size

# What of a data set of the hub is taken, by the format of the card.
_HOSTED = {"parquet": (".parquet",), "reasonseg": (".jpg", ".json")}
_MANY, _AT_ONCE = 10, 8  # more files of a folder than this are fetched together, so many at a time


def list_downloads(card: Card) -> list[Download]:
    """Return what can be downloaded, annotations before images, since only they tell which images are needed.

    The hub is asked for the names, sizes and digests of its files. Raises DownloadError where it does not answer.
    """
    hosted = _list_hub(card) if card.hub else []
    return [*hosted, *sorted(card.fetch, key=lambda item: item.holds)]


def group_downloads(downloads: Sequence[Download]) -> list[list[Download]]:
    """Return the downloads in their order, each by itself, and many files of one folder together."""
    groups: list[list[Download]] = []
    for _, items in groupby(downloads, key=lambda item: (item.holds, item.into, item.take)):
        files = list(items)
        groups += [files] if len(files) > _MANY else [[file] for file in files]
    return groups


def _list_hub(card: Card) -> list[Download]:
    """Return the files of the card's data set of the hub, as it lies there now."""
    from huggingface_hub import HfApi

    if card.format not in _HOSTED:
        raise RisError(f"{card.name}: hub is for the formats {' and '.join(_HOSTED)}; give its files as fetch")
    api, repository, suffixes = HfApi(), card.hub, _HOSTED[card.format]
    try:
        info = api.dataset_info(repository, files_metadata=True)
    except Exception as error:  # of huggingface_hub, of the libraries below it, or of the network
        raise DownloadError(f"{api.endpoint} does not tell the files of {repository} ({error})") from error
    files = []
    for sibling in info.siblings or ():
        if sibling.rfilename.endswith(suffixes) and _is_of_split(sibling.rfilename, card):
            place = resolve_inside(card.annotations, sibling.rfilename, f"{api.endpoint}: {repository}")
            address = f"{api.endpoint}/datasets/{repository}/resolve/{info.sha}/{quote(sibling.rfilename)}"
            digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else ""
            files.append(Download("annotations", place.name, place.parent, (address,), "", sibling.size, digest))
    if not files:
        raise DownloadError(f"{api.endpoint}: {repository} has no {' or '.join(suffixes)} files")
    return files


def _is_of_split(name: str, card: Card) -> bool:
    # ReasonSeg's folders are its splits; there are others beside them. Of parquet files every one is read.
    return card.format == "parquet" or name.partition("/")[0] in card.splits


def describe_download(items: Sequence[Download], data_root: Path) -> str:
    """Return a line that says what is downloaded, how large it is, where to, and from where; see `group_downloads`."""
    item = items[0]
    known = [item.n_bytes for item in items if item.n_bytes]
    size = format_size(sum(known)) if len(known) == len(items) else "size not known beforehand"
    others = f", else {' or '.join(item.sources[1:])}" if len(item.sources) > 1 else ""
    name = item.file if len(items) == 1 else f"{len(items):,} files as {item.file}"
    return f"{item.holds}: {name}, {size}, into {data_root / item.into}, from {item.sources[0]}{others}"


def is_there(item: Download, card: Card, data_root: Path) -> bool:
    """Return whether the download is not needed: its file is there, all annotations, or all images of its folder.

    So it is where the archive was unpacked before and all that came of it is there, whatever else is missing. Without
    annotations nobody knows which images are needed. Raises RisError where the annotations cannot be read.
    """
    into = data_root / item.into
    if not item.take and item.holds == "annotations":
        return (into / item.file).is_file()
    if item.take and _is_unpacked(into, item.file):
        return True
    missing = missing_paths(card, data_root)
    if item.holds == "annotations":
        return not set(missing) - {data_root / card.images}
    return not missing and sum(path.is_relative_to(into) for path in find_lost(card, data_root)) <= card.holes


def find_lost(card: Card, data_root: Path) -> list[Path]:
    """Return the images that the annotations name and that are not there. Raises RisError for bad annotations."""
    check = check_dataset(card, data_root)
    if unreadable := check.faults.get(UNREADABLE):
        raise RisError(unreadable[0].text)
    return [data_root / card.images / name for fault in check.faults.get(MISSING, ()) for name in fault.names]


def fetch_many(items: Sequence[Download], data_root: Path, console: Console) -> None:
    """Download the files that are not there yet, several at a time, none of them an archive. Errors as of `fetch`."""
    left = [item for item in items if not (data_root / item.into / item.file).is_file()]
    quiet = Console(quiet=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool, console.progress("files", len(items), len(items) - len(left)) as advance:
        try:
            for _ in pool.map(lambda item: fetch(item, data_root, quiet), left):
                advance()
        finally:
            pool.shutdown(cancel_futures=True)


def fetch(item: Download, data_root: Path, console: Console) -> None:
    """Download the file, check it, and unpack it where it is an archive.

    An archive that is there already, in the data root or beside the place where it belongs, is taken and kept; one that
    was downloaded is removed once it is unpacked. Raises RisError where no source gives the file, and for an archive
    that is damaged or would write elsewhere.
    """
    folder = data_root / item.into
    make_folder(folder)
    target = (data_root if item.take else folder) / item.file
    with hold(target.with_name(f"{target.name}.lock")):
        # Hidden, so that a run that was killed while it unpacked leaves no archive that looks like somebody's own.
        fetched = target.with_name(f".{item.file}")
        is_fetched = bool(item.take) and fetched.is_file()
        own = _find_archive(item, data_root, console) if item.take and not is_fetched else None
        if own is None and not is_fetched:
            _check_space(item, data_root)
            download(item.sources, target, console, n_bytes=item.n_bytes, digest=item.digest)
            if item.take:
                target.replace(fetched)
        if item.take:
            unpacked = unpack(own or fetched, item.take, folder, console)
            # Several archives may fill one folder: this one need not come again when another of them broke off.
            write_json(_list_of(folder, item.file), unpacked)
            if own is None:
                fetched.unlink()


def unpack(archive: Path, take: str, folder: Path, console: Console) -> dict[str, int]:
    """Write the files of a zip archive that fit the pattern `take` into the folder, each whole and by its own name.

    Returns their names and sizes in bytes.
    A file of the same name and size is left as it is, so that a broken run goes on. Raises RisError for an archive that
    is damaged or encrypted, has nothing that fits, two files of one name, a link, or a name that leads elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted = dict(_choose(opened, archive, take, folder))
            if not wanted:
                raise RisError(f"{archive}: there is nothing like {take} in it; is it another archive?")
            n_bytes = sum(member.file_size for member in wanted.values())
            if n_bytes > (free := shutil.disk_usage(folder).free):
                raise RisError(
                    f"{folder}: {format_size(n_bytes)} to unpack, and {format_size(free)} free; make room there"
                )
            console.say(f"unpacking {len(wanted):,} files, {format_size(n_bytes)}, from {archive} into {folder}")
            with console.progress("files", len(wanted)) as advance:
                for path, member in wanted.items():
                    if not (path.is_file() and path.stat().st_size == member.file_size):
                        with opened.open(member) as source, replacing(path, fsync=False) as copy:
                            shutil.copyfileobj(source, copy)
                    advance()
            return {path.name: member.file_size for path, member in wanted.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise RisError(f"{archive}: not a whole zip archive ({error}); delete it and fetch it again") from error


def _list_of(folder: Path, archive: str) -> Path:
    return folder / f".{archive}.unpacked"


def _is_unpacked(folder: Path, archive: str) -> bool:
    """Return whether the archive was unpacked into the folder, and every file of it is there in its size."""
    try:
        sizes = load_json(_list_of(folder, archive))
    except RisError:
        return False
    return isinstance(sizes, Mapping) and all(
        (path := folder / name).is_file() and path.stat().st_size == size for name, size in sizes.items()
    )


def _choose(opened: zipfile.ZipFile, archive: Path, take: str, folder: Path) -> Iterator[tuple[Path, zipfile.ZipInfo]]:
    """Yield the place of each file of the archive that is wanted; a Mac's hidden copies are not."""
    seen: dict[str, str] = {}
    for member in opened.infolist():
        if member.is_dir() or not fnmatchcase(member.filename, take):
            continue
        resolve_inside(folder, member.filename, str(archive))
        name = PurePosixPath(member.filename).name
        if name.startswith("."):
            continue
        if stat.S_ISLNK(member.external_attr >> 16):
            raise RisError(f"{archive}: {member.filename!r} is a link; only files are unpacked")
        if name in seen:
            raise RisError(f"{archive}: {member.filename!r} and {seen[name]!r} would be one file in {folder}")
        seen[name] = member.filename
        yield folder / name, member


def _find_archive(item: Download, data_root: Path, console: Console) -> Path | None:
    """Return the archive where somebody has put it: in the data root, or in or beside the folder that it fills."""
    folder = data_root / item.into
    for path in dict.fromkeys(place / item.file for place in (data_root, folder, folder.parent)):
        if path.is_file():
            if fault := find_fault(path, item.n_bytes, item.digest):
                console.say(f"{path} is not the right file: {fault}")
            else:
                console.say(f"{path} is there and right: nothing is downloaded")
                return path
    return None


def _check_space(item: Download, data_root: Path) -> None:
    """Raise RisError where the disk cannot hold the file, and of an archive what is in it too."""
    needed = (item.n_bytes or 0) * (2 if item.take else 1)
    if needed > (free := shutil.disk_usage(data_root).free):
        raise RisError(f"{data_root}: {format_size(needed)} are needed, and {format_size(free)} free; make room there")
