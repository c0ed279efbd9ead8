import hashlib
import io
import json
import pickle
import stat
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopback import PAGE, serve
from ris_pipeline.chain.context import Context
from ris_pipeline.chain.data import fetch_data
from ris_pipeline.datasets import fetch as module
from ris_pipeline.datasets.card import Card, Download, load_card
from ris_pipeline.datasets.fetch import fetch, is_there, list_downloads, unpack
from ris_pipeline.datasets.io.segmentations import encode_rle
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.process.console import Console

QUIET = Console(quiet=True)
REFS = [
    {
        "ref_id": 1, "ann_id": 50, "image_id": 5, "split": "train",
        "sentences": [{"sent_id": 10, "sent": "left dog"}, {"sent_id": 11, "sent": "dog"}],
    }
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "height": 4, "width": 6}],
    "annotations": [{"id": 50, "image_id": 5, "category_id": 1, "bbox": [1, 1, 3, 2],
                     "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}],
}  # fmt: skip


def zipped(files):
    """The bytes of a zip archive of {name: content}."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def picture():
    data = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(data, "JPEG")
    return data.getvalue()


ANNOTATIONS = zipped({
    "toy/": "", "toy/refs(unc).p": pickle.dumps(REFS, 2), "toy/instances.json": json.dumps(INSTANCES),
    "__MACOSX/toy/._instances.json": "x",
})  # fmt: skip
IMAGES = zipped({"train2014/COCO_train2014_000000000005.jpg": picture(), "train2014/COCO_train2014_9.jpg": picture()})


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def card(server):
    """A card in the layout of RefCOCO's, whose first source of annotations has become a web page."""
    sources = server.host("/dead/toy.zip", PAGE, kind="text/html"), server.host("/toy.zip", ANNOTATIONS)
    digest = f"sha256:{hashlib.sha256(ANNOTATIONS).hexdigest()}"
    annotations = Download(
        "annotations", "toy.zip", Path("refer/toy"), sources, "toy/*", n_bytes=len(ANNOTATIONS), digest=digest
    )
    images = Download(
        "images", "train2014.zip", Path("train2014"), (server.host("/t.zip", IMAGES),), "train2014/*.jpg",
        digest=f"md5:{hashlib.md5(IMAGES).hexdigest()}",
    )  # fmt: skip
    return Card("toy", "refer", Path("refer/toy"), Path("train2014"), {"train": 2}, "unc", fetch=(annotations, images))


def fetch_all(card, root):
    for item in card.fetch:
        fetch(item, root, QUIET)


def test_a_data_set_is_fetched_to_where_its_card_looks(card, tmp_path):
    assert [is_there(item, card, tmp_path) for item in card.fetch] == [False, False]
    fetch_all(card, tmp_path)
    assert [is_there(item, card, tmp_path) for item in card.fetch] == [True, True]
    dataset = load_dataset(card, tmp_path, "train")
    assert [e.sentence for ref in dataset.refs for e in ref.expressions] == ["left dog", "dog"]
    assert dataset.images[5].path.read_bytes() == picture()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        "refer/toy/.toy.zip.unpacked", "refer/toy/instances.json", "refer/toy/refs(unc).p",
        "train2014/.train2014.zip.unpacked",
        "train2014/COCO_train2014_000000000005.jpg", "train2014/COCO_train2014_9.jpg",
    ]  # fmt: skip


def test_images_count_as_there_when_those_that_the_annotations_name_are(card, tmp_path):
    fetch_all(card, tmp_path)
    image = tmp_path / "train2014" / "COCO_train2014_000000000005.jpg"
    (tmp_path / "train2014" / ".train2014.zip.unpacked").unlink()  # somebody else put the images there
    (tmp_path / "train2014" / "COCO_train2014_9.jpg").unlink()
    assert is_there(card.fetch[1], card, tmp_path)
    image.unlink()
    assert not is_there(card.fetch[1], card, tmp_path)
    assert is_there(card.fetch[1], replace(card, holes=1), tmp_path)
    (tmp_path / "refer" / "toy" / "refs(unc).p").write_bytes(PAGE)
    with pytest.raises(RisError, match=r"refs\(unc\)\.p is not annotations but a web page"):
        is_there(card.fetch[1], card, tmp_path)


def test_images_of_two_folders_are_fetched_each_where_they_miss(server, tmp_path):
    images = [{"id": n, "file_name": f"COCO_{part}2014_{n}.jpg", "height": 4, "width": 6}
              for n, part in ((1, "train"), (2, "val"))]  # fmt: skip
    refs = [{**REFS[0], "ann_id": -1, "image_id": image["id"], "ref_id": image["id"],
             "sentences": [{"sent_id": image["id"], "sent": "a dog"}]} for image in images]  # fmt: skip
    folder = tmp_path / "refer"
    folder.mkdir()
    (folder / "refs(final).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": []}))
    addresses = [server.host(f"/{image['file_name']}", zipped({image["file_name"]: picture()})) for image in images]
    items = [
        Download("images", f"{part}.zip", Path(part), (address,), "*.jpg")
        for part, address in zip(("train2014", "val2014"), addresses, strict=True)
    ]
    card = Card(
        "zom", "refzom", Path("refer"), Path(), {"train": 2}, "final", fetch=tuple(items), pages=("https://a.b/c",)
    )
    fetch(items[0], tmp_path, QUIET)
    fetch_data(Context(card, data_root=tmp_path, console=QUIET))
    assert [path for path, _ in server.asked] == ["/COCO_train2014_1.jpg", "/COCO_val2014_2.jpg"]
    assert all(is_there(item, card, tmp_path) for item in items)


@pytest.fixture
def phrasecut(server):
    """The shipped card, with this server in its hosts' place: an image of either archive, both of one folder."""
    tasks = [
        {"task_id": f"{n}__0", "image_id": n, "phrase": "a dog", "Polygons": [[[[1, 1], [4, 1], [4, 3], [1, 3]]]],
         "instance_boxes": [[1, 1, 3, 2]]} for n in (1, 2)
    ]  # fmt: skip
    images = [{"image_id": n, "height": 4, "width": 6, "split": "train"} for n in (1, 2)]
    files = {"image_data_split.json": json.dumps(images).encode(), "refer_train.json": json.dumps(tasks).encode()}
    files |= {f"refer_{split}.json": b"[]" for split in ("val", "test", "miniv")}
    files |= {
        f"visual_genome_{n}.zip": zipped({f"VG_100K{suffix}/{n}.jpg": picture()}) for n, suffix in ((1, ""), (2, "_2"))
    }
    card = load_card("phrasecut")
    downloads = tuple(
        replace(item, sources=(server.host(f"/{item.file}", files[item.file]),), n_bytes=None) for item in card.fetch
    )
    return replace(card, fetch=downloads, splits=dict.fromkeys(card.splits))


def test_after_a_break_in_the_second_archive_of_a_folder_the_first_is_not_fetched_again(phrasecut, server, tmp_path):
    context = Context(phrasecut, data_root=tmp_path, console=QUIET)
    second = server.files["/visual_genome_2.zip"]
    second.breaks_after, second.has_ranges = 100, False
    with pytest.raises(DownloadError, match=r"visual_genome_2\.zip .* 100 of \d+ bytes came"):
        fetch_data(context)
    second.breaks_after, second.has_ranges = None, True
    server.asked.clear()
    fetch_data(context)
    assert server.asked == [("/visual_genome_2.zip", "bytes=100-")]
    server.asked.clear()
    fetch_data(context)
    assert server.asked == []
    assert len(load_dataset(phrasecut, tmp_path, "train").images) == 2
    (tmp_path / "VGPhraseCut_v0/images/1.jpg").unlink()
    fetch_data(context)
    assert server.asked == [("/visual_genome_1.zip", None)]


def test_an_image_that_no_archive_has_is_named_and_not_fetched_for_ever(card, server, tmp_path):
    lacking = zipped({"train2014/COCO_train2014_9.jpg": picture()})
    images = replace(card.fetch[1], sources=(server.host("/lacking.zip", lacking),), digest="")
    context = Context(replace(card, fetch=(card.fetch[0], images)), data_root=tmp_path, console=QUIET)
    for _ in range(2):
        with pytest.raises(RisError, match=r"1 of the images are still missing, .*COCO_train2014_000000000005\.jpg"):
            fetch_data(context)
    assert [path for path, _ in server.asked if path == "/lacking.zip"] == ["/lacking.zip"]


def test_where_no_source_answers_the_line_says_where_a_person_finds_it(card, server, tmp_path):
    server.host("/toy.zip", PAGE)
    pages = ("https://drive.example/folder", "https://pan.example/s")
    message = (
        r"web page.*\); or fetch it by hand: https://drive\.example/folder or https://pan\.example/s into .*refer/toy"
    )
    with pytest.raises(DownloadError, match=message):
        fetch_data(Context(replace(card, pages=pages), data_root=tmp_path, console=QUIET))


def test_annotations_that_only_a_person_can_fetch_are_told_before_anything_is_fetched(card, server, tmp_path):
    by_hand = replace(card, fetch=card.fetch[1:], pages=("https://drive.example/folder",))
    with pytest.raises(RisError, match=r"put .*refs\(unc\)\.p, .* by hand from https://drive\.example/folder"):
        fetch_data(Context(by_hand, data_root=tmp_path, console=QUIET))
    assert server.asked == []


@pytest.mark.parametrize("place", ["toy.zip", "refer/toy.zip", "refer/toy/toy.zip"])
def test_an_archive_that_somebody_put_there_is_taken_and_kept(card, server, tmp_path, place, capsys):
    archive = tmp_path / place
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(ANNOTATIONS)
    fetch(card.fetch[0], tmp_path, Console())
    assert is_there(card.fetch[0], card, tmp_path)
    assert archive.read_bytes() == ANNOTATIONS
    assert server.asked == []
    assert f"{archive} is there and right" in capsys.readouterr().err


def test_what_a_run_that_was_killed_had_fetched_is_unpacked_and_removed(card, server, tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "unpack", kill)
        with pytest.raises(KeyboardInterrupt):
            fetch(card.fetch[0], tmp_path, QUIET)
    n_asked = len(server.asked)
    fetch(card.fetch[0], tmp_path, QUIET)
    assert len(server.asked) == n_asked
    assert is_there(card.fetch[0], card, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["refer"]


def test_half_of_an_archive_that_somebody_put_there_is_named_and_not_taken(card, tmp_path, capsys):
    archive = tmp_path / "refer" / "toy.zip"
    archive.parent.mkdir()
    archive.write_bytes(ANNOTATIONS[:100])
    fetch(card.fetch[0], tmp_path, Console())
    assert f"{archive} is not the right file: 100 bytes, not {len(ANNOTATIONS):,}" in capsys.readouterr().err
    assert is_there(card.fetch[0], card, tmp_path)


def test_a_file_that_is_no_archive_is_put_into_its_folder(server, tmp_path):
    item = Download("annotations", "g.json", Path("g"), (server.host("/g.json", b"[1]"),))
    fetch(item, tmp_path, QUIET)
    assert (tmp_path / "g" / "g.json").read_bytes() == b"[1]"
    assert is_there(item, Card("g", "refer", Path("g"), Path("i"), {"train": None}, "unc"), tmp_path)


def test_a_page_in_the_place_of_the_archive_is_told(card, server, tmp_path):
    server.host("/toy.zip", PAGE)
    with pytest.raises(DownloadError, match=r"dead/toy\.zip: it is a web page.*; .*/toy\.zip: it is a web page"):
        fetch(card.fetch[0], tmp_path, QUIET)
    assert not is_there(card.fetch[0], card, tmp_path)


def test_a_full_disk_is_told_before_anything_is_fetched(card, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=len(ANNOTATIONS)))
    with pytest.raises(RisError, match=r"1\.\d kB are needed, and 0\.\d kB free"):
        fetch(card.fetch[0], tmp_path, QUIET)
    assert server.asked == []


def save(tmp_path, files):
    (tmp_path / "a.zip").write_bytes(zipped(files))
    (tmp_path / "into").mkdir()
    return tmp_path / "a.zip", tmp_path / "into"


@pytest.mark.parametrize("name", ["toy/../../evil.jpg", "/tmp/evil.jpg", "toy/..\\..\\evil.jpg", "C:\\evil.jpg"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path, name):
    archive, folder = save(tmp_path, {"toy/good.jpg": "x", name: "x"})
    with pytest.raises(RisError, match=r"a\.zip: the file name .*evil.* leads out"):
        unpack(archive, "*", folder, QUIET)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "into"]


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("toy/a.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive, folder = save(tmp_path, {})
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(RisError, match=r"'toy/a\.jpg' is a link"):
        unpack(archive, "*", folder, QUIET)


def test_only_what_is_wanted_is_unpacked_and_by_its_own_name(tmp_path):
    archive, folder = save(tmp_path, {
        "saiapr/00/images/1.jpg": "1", "saiapr/01/images/2.jpg": "2", "saiapr/00/segmented_images/1.jpg": "s",
        "saiapr/00/images/.hidden.jpg": "h",
    })  # fmt: skip
    unpack(archive, "*/images/*.jpg", folder, QUIET)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"1.jpg": "1", "2.jpg": "2"}


def test_two_files_of_one_name_are_refused(tmp_path):
    archive, folder = save(tmp_path, {"a/1.jpg": "1", "b/1.jpg": "2"})
    with pytest.raises(RisError, match=r"'b/1\.jpg' and 'a/1\.jpg' would be one file"):
        unpack(archive, "*", folder, QUIET)


def test_an_archive_of_something_else_is_refused(tmp_path):
    archive, folder = save(tmp_path, {"a/1.jpg": "1"})
    with pytest.raises(RisError, match=r"there is nothing like train2014/\*\.jpg in it"):
        unpack(archive, "train2014/*.jpg", folder, QUIET)


@pytest.mark.parametrize("spoil", [lambda data: data[:-30], lambda data: data[:60] + b"!" + data[61:], lambda _: PAGE])
def test_a_damaged_archive_leaves_no_damaged_file(tmp_path, spoil):
    archive, folder = save(tmp_path, {"a/1.jpg": bytes(range(256)) * 20})
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(RisError, match="not a whole zip archive"):
        unpack(archive, "*", folder, QUIET)
    assert list(folder.iterdir()) == []


def test_unpacking_goes_on_where_it_broke_off(tmp_path):
    archive, folder = save(tmp_path, {"a/1.jpg": "11", "a/2.jpg": "22"})
    (folder / "1.jpg").write_text("1!")  # of the right size: it was written whole
    (folder / "2.jpg").write_text("2")
    unpack(archive, "*", folder, QUIET)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"1.jpg": "1!", "2.jpg": "22"}


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    archive, folder = save(tmp_path, {"a/1.jpg": b"\0" * 3_000_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(RisError, match=r"3\.0 MB to unpack, and 1\.0 MB free"):
        unpack(archive, "*", folder, QUIET)


@pytest.fixture
def hub(server, monkeypatch):
    """A function that answers as the hub does for a data set of these files: {name: content}."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)

    def host(repository, files):
        siblings = [
            {"rfilename": name, "size": len(data),
             "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}}
            for name, data in files.items()
        ]  # fmt: skip
        listing = json.dumps({"id": repository, "sha": "c0ffee", "siblings": siblings}).encode()
        server.host(f"/api/datasets/{repository}?blobs=true", listing, kind="application/json")
        for name, data in files.items():
            server.host(f"/datasets/{repository}/resolve/c0ffee/{name}", data)
        return Card("h", "parquet", Path("hf/ref"), Path("i"), {"train": None}, hub=repository)

    return host


def test_the_hubs_files_are_fetched_by_the_names_sizes_and_digests_that_it_tells(hub, tmp_path):
    card = hub("owner/ref", {"README.md": b"#", "data/train-0.parquet": b"PAR1one", "data/train-1.parquet": b"PAR1two"})
    first, second = list_downloads(card)
    assert (first.into, first.file, first.n_bytes) == (Path("hf/ref/data"), "train-0.parquet", 7)
    fetch(first, tmp_path, QUIET)
    assert [is_there(item, card, tmp_path) for item in (first, second)] == [True, False]  # a part of it is not all
    fetch(second, tmp_path, QUIET)
    assert (tmp_path / "hf" / "ref" / "data" / "train-1.parquet").read_bytes() == b"PAR1two"


def test_many_small_files_of_the_hub_are_fetched_together_and_go_on(hub, server, tmp_path, capsys):
    """The shipped card of ReasonSeg: files by files, its folders as they are; what is beside them stays there."""
    record = {"text": ["the dog"], "shapes": [{"label": "target", "points": [[1, 1], [4, 1], [4, 3], [1, 3]]}]}
    files = {"README.md": b"#", "explanatory/a.json": b"{}"}
    for split, n in (("train", 8), ("val", 3)):
        files |= {f"{split}/{k}.jpg": picture() for k in range(n)}
        files |= {f"{split}/{k}.json": json.dumps(record).encode() for k in range(n)}
    card = load_card("reasonseg")
    hub(card.hub, files)
    card = replace(card, splits={"train": None, "val": None})
    context = Context(card, data_root=tmp_path, console=Console())
    gone = server.files.pop(f"/datasets/{card.hub}/resolve/c0ffee/train/5.json")
    with pytest.raises(
        DownloadError, match=r"5\.json did not download .*404.* by hand: https://drive\.google\.com.* into "
    ):
        fetch_data(context)
    server.files[f"/datasets/{card.hub}/resolve/c0ffee/train/5.json"] = gone
    server.asked.clear()
    fetch_data(context)
    n_asked = len([path for path, _ in server.asked if "/resolve/" in path])
    assert n_asked < len(files) - 2  # those that were fetched before are not asked for
    assert len([line for line in capsys.readouterr().err.splitlines() if "16 files as 0.jpg" in line]) == 2
    assert len(load_dataset(card, tmp_path, "train").refs) == 8
    assert not (tmp_path / card.annotations / "explanatory").exists()


def test_a_hub_is_for_formats_whose_files_it_can_list(hub):
    with pytest.raises(RisError, match="hub is for the formats parquet and reasonseg; give its files as fetch"):
        list_downloads(replace(hub("owner/ref", {}), format="refer"))


def test_what_the_hub_does_not_have_is_told(hub, server):
    card = hub("owner/ref", {"README.md": b"#"})
    with pytest.raises(DownloadError, match=r"owner/ref has no \.parquet files"):
        list_downloads(card)
    with pytest.raises(DownloadError, match=rf"{server.address} does not tell the files of owner/gone"):
        list_downloads(replace(card, hub="owner/gone"))
    with pytest.raises(RisError, match="leads out of"):
        list_downloads(hub("owner/ref", {"../../x.parquet": b"PAR1"}))


def test_images_inside_the_hubs_files_become_files(hub, tmp_path):
    content = {
        "image": {"bytes": picture(), "path": None},
        "image_id": 5,
        "file_name": "COCO_train2014_000000000005.jpg",
        "samples": [
            {"id": 50, "sentences": ["the dog"], "bbox": [1.0, 1.0, 3.0, 2.0],
             "mask": encode_rle(np.pad(np.ones((2, 3), bool), ((1, 1), (1, 2))))},
        ],
    }  # fmt: skip
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([content]), file)
    card = replace(
        hub("owner/ref", {"data/validation-0.parquet": file.getvalue()}),
        splits={"val": 1},
        images=Path("hf/ref/images"),
    )
    fetch_data(Context(card, data_root=tmp_path, console=QUIET))
    dataset = load_dataset(card, tmp_path, "val")
    assert [e.sentence for ref in dataset.refs for e in ref.expressions] == ["the dog"]
    assert dataset.load_mask(dataset.refs[0]).sum() == 6
    (image,) = dataset.images.values()
    assert image.path.read_bytes() == picture()
