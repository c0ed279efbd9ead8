"""Thousands of spoilt files: each is read, or refused in one line; none runs, none writes, none hangs.

    python -m pytest tests/fuzz -m "slow or not slow" -s

prints how many inputs each reader was given. An input is a function of its number alone: `spoil_bytes(whole,
default_rng(number))`.
"""

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ris_pipeline.datasets import load_card, load_dataset
from ris_pipeline.datasets.io.files import load_picture, read_size

N_QUICK, N_SLOW = 12, 220  # inputs of a reader in the default run, and in the long one


@dataclass(frozen=True)
class Reader:
    """A file to spoil, and who reads it."""

    make: Callable[[Path], Path]  # writes whole files into an empty folder; the one to be spoilt
    read: Callable[[Path], object]  # of that file


def picture(format: str, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def card(folder: Path, name: str, form: str, annotations: str, splits: str = "train") -> None:
    lines = [f'name = "{name}"', f'format = "{form}"', f'annotations = "{annotations}"', 'images = "images"']
    lines += ['partition = "unc"'] if form in ("refer", "grefcoco", "rrsisd") else []
    lines += ["[splits]", f'{splits} = "any"', "[config.step1]", "epochs = 3", "lr = 1e-4"]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
    (folder / "images").mkdir(exist_ok=True)


def read_all(folder: Path, name: str) -> None:
    """Everything that the stages ask of a data set."""
    dataset = load_dataset(load_card(folder / f"{name}.toml"), folder, "train")
    for ref in dataset.refs:
        dataset.siblings(ref)
        if ref.has_mask:
            dataset.load_mask(ref)
    for image in dataset.images.values():
        if image.path.is_file():
            load_picture(image.path, "RGB")


RLE = {"size": [16, 24], "counts": [100, 50, 234]}
REFS = [
    {
        "ref_id": n, "ann_id": 10 + n, "image_id": 1 + n // 2, "category_id": 1, "split": "train",
        "file_name": f"COCO_{n}.jpg", "sent_ids": [2 * n, 2 * n + 1],
        "sentences": [
            {"sent_id": 2 * n + k, "sent": "the red dog", "raw": "The red dog", "tokens": ["the", "red", "dog"]}
            for k in range(2)
        ],
    }
    for n in range(3)
]  # fmt: skip
INSTANCES = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 16, "width": 24} for i in (1, 2)],
    "annotations": [
        {"id": 10 + n, "image_id": 1 + n // 2, "bbox": [1.5, 2, 6, 7], "area": 4.5, "category_id": 1, "iscrowd": 0,
         "segmentation": segmentation}
        for n, segmentation in enumerate(([[1, 1, 8, 1, 8, 8, 1, 8]], RLE, [[2.5, 2, 9, 3, 5, 9], [1, 1, 3, 3, 1, 3]]))
    ],
    "categories": [{"id": 1, "name": "dog"}],
}  # fmt: skip


def make_refer(folder: Path) -> tuple[Path, Path]:
    card(folder, "refer", "refer", "refer")
    (folder / "refer").mkdir()
    refs, instances = folder / "refer" / "refs(unc).p", folder / "refer" / "instances.json"
    refs.write_bytes(pickle.dumps(REFS, protocol=2))
    instances.write_text(json.dumps(INSTANCES))
    for i in (1, 2):
        (folder / "images" / f"{i}.jpg").write_bytes(picture("JPEG"))
    return refs, instances


def make_referit(folder: Path, name: str) -> Path:
    card(folder, "referit", "referit", "referit")
    (folder / "referit").mkdir()
    files: dict[str, Any] = {
        "referit_query_train.json": {"7_1": ["the dog", "dog left"], "7_2": ["cat"], "8_1": ["sky"]},
        "referit_query_val.json": {"9_1": ["tree"]},
        "referit_query_test.json": {"10_1": ["house"]},
        "referit_bbox.json": {key: [1, 2, 10, 12] for key in ("7_1", "7_2", "8_1", "9_1", "10_1")},
        "referit_imsize.json": {f"{i}.jpg": [24, 16] for i in (7, 8, 9, 10)},
    }
    for file, content in files.items():
        (folder / "referit" / file).write_text(json.dumps(content))
    return folder / "referit" / name


def make_referit_pickle(folder: Path) -> Path:
    card(folder, "referit", "referit", "referit")
    pickles = folder / "referit" / "annotations"
    pickles.mkdir(parents=True)
    table = {
        str(i): {"annotations": [
            {"bbox": [[1, 2, 10, 12]], "query": "the dog", "ref_id": n, "segmentation": [RLE]} for n in range(2)
        ]}
        for i in (7, 8)
    }  # fmt: skip
    for split in ("train", "test"):
        (pickles / f"{split}.pickle").write_bytes(pickle.dumps(table, protocol=2))
    return pickles / "train.pickle"


def make_grefcoco(folder: Path) -> Path:
    """Refs of two objects, of one, and of none."""
    card(folder, "gref", "grefcoco", "gref")
    (folder / "gref").mkdir()
    (folder / "gref" / "instances.json").write_text(json.dumps(INSTANCES))
    refs = [ref | {"ann_id": ids} for ref, ids in zip(REFS, ([10, 11], [11], [-1]), strict=True)]
    (folder / "gref" / "grefs(unc).json").write_text(json.dumps(refs))
    return folder / "gref" / "grefs(unc).json"


def make_rrsisd(folder: Path) -> Path:
    card(folder, "aerial", "rrsisd", "aerial")
    (folder / "aerial").mkdir()
    (folder / "aerial" / "refs(unc).p").write_bytes(pickle.dumps(REFS[1:2]))
    (folder / "aerial" / "instances.json").write_text(json.dumps(INSTANCES))
    return folder / "aerial" / "instances.json"


def make_parquet(folder: Path, layout: str) -> Path:
    """Rows of jxu124's, lmms-lab's or moondream's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    card(folder, "hub", "parquet", "hub")
    (folder / "hub").mkdir()
    (folder / "images" / "1.jpg").write_bytes(picture("JPEG"))
    packed = {"counts": "0P<", "size": [16, 24]}  # all of the image
    rows: dict[str, Any] = {
        "refer": [
            {key: REFS[0][key] for key in ("ref_id", "ann_id", "image_id", "category_id", "split", "sentences")}
            | {"raw_anns": json.dumps(INSTANCES["annotations"][0])}
            | {"raw_image_info": json.dumps(INSTANCES["images"][0])}
        ],
        "answers": [
            {"question_id": "1", "answer": ["the dog"], "segmentation": [1.0, 1, 8, 1, 8, 8, 1, 8], "iscrowd": 0,
             "bbox": [1.0, 1, 7, 7], "file_name": "1.jpg"}
        ],
        "samples": [
            {"image_id": 1, "file_name": "1.jpg", "samples": [
                {"id": 3, "sentences": ["the dog"], "bbox": [0.0, 0, 24, 16], "mask": packed}
            ]}
        ],
    }  # fmt: skip
    path = folder / "hub" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows[layout]), path)
    return path


def make_phrasecut(folder: Path) -> Path:
    card(folder, "phrases", "phrasecut", "phrases")
    (folder / "phrases").mkdir()
    sizes = [{"image_id": 1, "height": 16, "width": 24, "split": "train"}]
    (folder / "phrases" / "image_data_split.json").write_text(json.dumps(sizes))
    square, corner = [[1, 1], [8, 1], [8, 8], [1, 8]], [[10.5, 2], [12, 2], [12, 5]]
    tasks = [{"task_id": f"1__{n}", "image_id": 1, "phrase": "dogs", "Polygons": [[square], [corner]]} for n in (1, 2)]
    (folder / "phrases" / "refer_train.json").write_text(json.dumps(tasks))
    return folder / "phrases" / "refer_train.json"


def make_reasonseg(folder: Path) -> Path:
    "café".encode("cp1252")  # Python imports a code page at its first use
    card(folder, "reason", "reasonseg", "images")
    (folder / "images" / "train").mkdir()
    (folder / "images" / "train" / "a.jpg").write_bytes(picture("JPEG"))
    points = [[1, 1], [8, 1], [8, 8], [1, 8]]
    shapes = [{"label": "target", "points": points}, {"label": "ignore", "points": points[:3]}]
    record = {"text": ["Which one barks?"], "is_sentence": True, "shapes": shapes}
    (folder / "images" / "train" / "a.json").write_text(json.dumps(record))
    return folder / "images" / "train" / "a.json"


def make_flickr30k(folder: Path, name: str) -> Path:
    card(folder, "captions", "flickr30k", "captions")
    edges = "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>12</ymax>"
    files = {
        "train.txt": "7\n",
        "Sentences/7.txt": "[/EN#5/people A man] near [/EN#6/animals the brown dog] .\n",
        "Annotations/7.xml": "<annotation><size><width>24</width><height>16</height></size><object><name>5</name>"
        f"<name>6</name><bndbox>{edges}</bndbox></object></annotation>",
    }
    for file, text in files.items():
        (folder / "captions" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "captions" / file).write_text(text)
    return folder / "captions" / name


def make_pairs(folder: Path) -> Path:
    card(folder, "pairs", "pairs", ".")
    for name in ("a", "b"):
        (folder / "images" / f"{name}.png").write_bytes(picture("PNG"))
    (folder / "m.png").write_bytes(picture("PNG", mode="L"))
    lines = [
        {"image": "a.png", "ref": "dog", "sentence": "the dog", "split": "train", "box": [1, 2, 9, 9]},
        {"image": "a.png", "ref": "dog", "sentence": "dog left", "split": "train"},
        {"image": "b.png", "ref": "cat", "sentence": "the cat", "mask": "m.png"},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def make_picture(folder: Path, format: str, mode: str = "RGB") -> Path:
    path = folder / f"picture.{format.lower()}"
    path.write_bytes(picture(format, mode=mode))
    return path


def read_picture(path: Path) -> None:
    from ris_pipeline.datasets.io.labels import load_label

    failures = []
    for read in (read_size, lambda file: load_picture(file, "RGB"), lambda file: load_picture(file, None), load_label):
        try:
            read(path)
        except Exception as error:
            failures.append(error)
    from ris_pipeline.errors import RisError

    for error in failures:
        if not isinstance(error, RisError):
            raise error


def make_weights(folder: Path) -> Path:
    from safetensors.numpy import save_file

    path = folder / "model.safetensors"
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b.bias": np.zeros(5, np.float16), "n": np.array(3)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def make_torch_weights(folder: Path) -> Path:
    import torch

    torch.save({"a.weight": torch.ones(3, 4), "b.bias": torch.zeros(5)}, folder / "model.pt")
    return folder / "model.pt"


def read_tensors(path: Path) -> None:
    from ris_pipeline.networks.weights.tensors import read_weights

    read_weights(path)


def make_store(folder: Path, file: str) -> Path:
    from ris_pipeline.maps.rule import RESPONSE
    from ris_pipeline.maps.store import ResponseStore

    store = ResponseStore.create(
        folder / "val.zarr", sent_id=range(1030), ref_id=np.arange(1030) // 2, image_hw=[(4, 5)] * 1030,
        grid_hw=(2, 2), rule=RESPONSE, input_size=64, attributes={"step1": "0123456789ab"},
    )  # fmt: skip
    for block in range(store.n_blocks):
        n = len(store.rows_of_block(block))
        store.write_block(block, np.ones((n, 2, 2), np.float32), np.ones(n, np.float32))
    store.select_maps()
    return folder / "val.zarr" / file


def read_store(path: Path) -> None:
    from ris_pipeline.maps.store import ResponseStore

    folder = next(parent for parent in path.parents if parent.suffix == ".zarr")
    store = ResponseStore.open(folder)
    store.missing_blocks()
    for block in range(store.n_blocks):
        store.read_block(block)
    store.read_grids(store.rows_of_ref(0))
    assert store.prms_score.shape == (len(store),)
    store.selected(0)


def name_of_data(path: Path) -> tuple[Path, str]:
    folder = next(parent for parent in path.parents if (parent / "images").is_dir())
    return folder, next(folder.glob("*.toml")).stem


def read_data(path: Path) -> None:
    read_all(*name_of_data(path))


READERS = {
    "REFER pickle": Reader(lambda folder: make_refer(folder)[0], read_data),
    "instances.json": Reader(lambda folder: make_refer(folder)[1], read_data),
    "ReferIt boxes": Reader(lambda folder: make_referit(folder, "referit_bbox.json"), read_data),
    "ReferIt sentences": Reader(lambda folder: make_referit(folder, "referit_query_train.json"), read_data),
    "ReferIt sizes": Reader(lambda folder: make_referit(folder, "referit_imsize.json"), read_data),
    "ReferIt pickle": Reader(make_referit_pickle, read_data),
    "gRefCOCO": Reader(make_grefcoco, read_data),
    "RRSIS-D": Reader(make_rrsisd, read_data),
    "parquet of REFER": Reader(lambda folder: make_parquet(folder, "refer"), read_data),
    "parquet of answers": Reader(lambda folder: make_parquet(folder, "answers"), read_data),
    "parquet of samples": Reader(lambda folder: make_parquet(folder, "samples"), read_data),
    "PhraseCut": Reader(make_phrasecut, read_data),
    "ReasonSeg": Reader(make_reasonseg, read_data),
    "Flickr30k captions": Reader(lambda folder: make_flickr30k(folder, "Sentences/7.txt"), read_data),
    "Flickr30k boxes": Reader(lambda folder: make_flickr30k(folder, "Annotations/7.xml"), read_data),
    "pairs.jsonl": Reader(make_pairs, read_data),
    "card": Reader(lambda folder: (make_pairs(folder), folder / "pairs.toml")[1], read_data),
    "PNG": Reader(lambda folder: make_picture(folder, "PNG", "L"), read_picture),
    "JPEG": Reader(lambda folder: make_picture(folder, "JPEG"), read_picture),
    "safetensors": Reader(make_weights, read_tensors),
    "torch weights": Reader(make_torch_weights, read_tensors),
    "Zarr group": Reader(lambda folder: make_store(folder, "zarr.json"), read_store),
    "Zarr logits": Reader(lambda folder: make_store(folder, "logits/zarr.json"), read_store),
    "Zarr ids": Reader(lambda folder: make_store(folder, "ref_id/zarr.json"), read_store),
    "Zarr chunk": Reader(lambda folder: make_store(folder, "logits/c/1/0/0"), read_store),
}
NUMBERS = (
    b"0", b"-1", b"1e999", b"NaN", b"-Infinity", b"99999999999999999999999", b"0.5", b"1" * 400, b"4294967295",
    b"null", b"true", b'"x"', b"[]", b"{}", b"[[[[]]]]", b'"../../etc/passwd"', b'"\\u0000"', b'"\\ud800"',
)  # fmt: skip


def spoil_bytes(whole: bytes, rng: np.random.Generator) -> bytes:
    """One to four small changes of a file's bytes: flips, cuts, copies, other numbers in the place of digits."""
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        i = int(rng.integers(len(data)))
        n = int(rng.integers(1, 2 ** int(rng.integers(1, 7))))
        match int(rng.integers(7)):
            case 0:
                data[i] ^= 1 << int(rng.integers(8))
            case 1:
                data[i] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, ord("r"), ord("."), ord("("), ord("]")]))
            case 2:
                del data[i : i + n]
            case 3:
                data[i:i] = rng.bytes(n)
            case 4:
                data[i:i] = data[i : i + n] * int(rng.integers(1, 4))
            case 5:
                del data[i:]
            case 6:
                digits = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
                if digits:
                    k = digits[int(rng.integers(len(digits)))]
                    data[k : k + 1] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return bytes(data)


def load_what_is_imported_at_first_use(reader: Reader, path: Path) -> None:
    """Read the file as it is, and an empty one: an import is no news after that."""
    reader.read(path)
    path.write_bytes(b"")
    with contextlib.suppress(Exception):
        reader.read(path)


def fuzz(reader: Reader, n: int, folder: Path, survives: Callable[..., str | None]) -> dict[int, str]:
    """{number of the input: fault} of those of n spoilt files that were not read well."""
    path = reader.make(folder)
    whole = path.read_bytes()
    PIL.Image.init()
    load_what_is_imported_at_first_use(reader, path)
    path.write_bytes(whole)
    assert survives(lambda: reader.read(path)) is None
    reader.read(path)
    faults = {}
    for number in range(n):
        path.write_bytes(spoil_bytes(whole, np.random.default_rng(number)))
        fault = survives(lambda: reader.read(path))
        if fault is not None:
            faults[number] = fault
    return faults


@pytest.mark.parametrize("name", READERS)
def test_spoilt_bytes(name, tmp_path, survives):
    assert fuzz(READERS[name], N_QUICK, tmp_path, survives) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", READERS)
def test_many_spoilt_bytes(name, tmp_path, survives):
    faults = fuzz(READERS[name], N_SLOW, tmp_path, survives)
    print(f"{name}: {N_SLOW} inputs, {len(faults)} faults")
    assert faults == {}


# Values that no record should have, for any place of an annotation.
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        2**64,
        10**400,
        -(10**400),
        0.5,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "\0",
        "\ud800",
        "a\nb",
        "../../etc/passwd",
        "/etc/passwd",
        "x" * 5000,
        "1",
        [],
        {},
        [[]],
        [None],
        [[0]],
        {"size": [2**20, 2**20], "counts": [2**40]},
        {"size": [1, 1], "counts": "\x7f" * 99},
        [[0, 0, 1e300, 1, 1, 1]],
        [[0] * 7],
        [["a", "b"] * 3],
        [True] * 4,
        [0, 0, 10**400, 1],
        DEEP,
    ]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a record, at most eight steps."""
    if len(place) == 8:
        return [place]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [found for key, inner in items for found in places_in(inner, (*place, key))]


@st.composite
def spoilt_records(draw: st.DrawFn, whole: Any) -> Any:
    """A copy of some records with one or two values replaced, dropped or said twice."""
    spoilt = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        places = places_in(spoilt)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        inner = spoilt
        for key in way:
            inner = inner[key]
        match draw(st.sampled_from(("replace", "replace", "replace", "drop", "twice"))):
            case "replace":
                inner[last] = copy.deepcopy(draw(JUNK))
            case "drop":
                del inner[last]
            case "twice" if isinstance(inner, list):
                inner.append(copy.deepcopy(inner[last]))
    return spoilt


def dump_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def dump_pickle(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def dump_lines(path: Path, value: Any) -> None:
    lines = value if isinstance(value, list) else [value]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def load_lines(path: Path) -> Any:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_json(path: Path) -> Any:
    return json.loads(path.read_text())


def load_pickle(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


RECORDS = {
    "REFER pickle": (load_pickle, dump_pickle),
    "instances.json": (load_json, dump_json),
    "ReferIt boxes": (load_json, dump_json),
    "ReferIt sentences": (load_json, dump_json),
    "ReferIt sizes": (load_json, dump_json),
    "ReferIt pickle": (load_pickle, dump_pickle),
    "pairs.jsonl": (load_lines, dump_lines),
    "Zarr group": (load_json, dump_json),
    "Zarr logits": (load_json, dump_json),
    "Zarr ids": (load_json, dump_json),
}


def fuzz_records(name: str, n: int, folder: Path, survives: Callable[..., str | None]) -> int:
    """The number of inputs that were tried; fails with the smallest that is not read well."""
    load, dump = RECORDS[name]
    path = READERS[name].make(folder)
    whole = load(path)
    load_what_is_imported_at_first_use(READERS[name], path)
    n_tried = 0

    @settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(spoilt_records(whole))
    def run(value: Any) -> None:
        nonlocal n_tried
        n_tried += 1
        dump(path, value)
        assert survives(lambda: READERS[name].read(path)) is None

    run()
    return n_tried


@pytest.mark.parametrize("name", RECORDS)
def test_spoilt_records(name, tmp_path, survives):
    assert fuzz_records(name, N_QUICK, tmp_path, survives) >= N_QUICK / 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECORDS)
def test_many_spoilt_records(name, tmp_path, survives):
    n_tried = fuzz_records(name, N_SLOW, tmp_path, survives)
    print(f"{name}: {n_tried} records, no fault")
