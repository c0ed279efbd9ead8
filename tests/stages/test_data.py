import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path

import PIL.Image
import pytest

from calls import Options, call, context_of
from loopback import PAGE, serve
from ris_pipeline.errors import RisError
from stages import data
from stages.context import Output

SHAPES_CARD = """
name = "few"
format = "refer"
partition = "shapes"
annotations = "few/refer/shapes"
images = "few/images"
[splits]
train = "any"
val = "any"
[generate]
variant = "shapes"
seed = 7
n_images = {train = 2, val = 1}
"""


@pytest.fixture
def few(tmp_path: Path) -> Options:
    (tmp_path / "few.toml").write_text(SHAPES_CARD)
    return Options(dataset=str(tmp_path / "few.toml"), data_root=tmp_path / "data", workers=1)


def test_check_counts(tiny, capsys):
    call(data.run_check, tiny)
    assert capsys.readouterr().out.splitlines() == [
        "tiny train: 1 images, 1 refs, 2 sentences (card: 2)",
        "tiny val: 1 images, 1 refs, 1 sentences (card: 1)",
    ]
    call(data.run_check, dataclasses.replace(tiny, json=True))
    assert [row["n_expressions"] for row in json.loads(capsys.readouterr().out)["splits"]] == [2, 1]


def test_check_names_missing_files(tiny):
    (tiny.data_root / "tiny" / "images" / "b.png").unlink()
    with pytest.raises(RisError, match=r"b\.png is missing; .*--write-exclude"):
        call(data.run_check, tiny)


def test_check_compares_with_the_card(tiny):
    card = Path(tiny.dataset)
    card.write_text(card.read_text().replace("train = 2", "train = 3"))
    with pytest.raises(RisError, match="tiny train: 2 sentences where the card expects 3"):
        call(data.run_check, tiny)


def test_a_check_lists_all_faults_at_once_and_writes_the_list_that_leaves_them_out(tiny, capsys):
    folder = tiny.data_root / "tiny"
    lines = [{"image": "a.png", "ref": f"x{n}", "sentence": "left", "box": [2, 2, 2, 2]} for n in range(12)]
    with (folder / "pairs.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (folder / "images" / "b.png").write_bytes(b"")
    with pytest.raises(RisError, match=r"tiny: 12 records that cannot be used, 1 empty files; .*--write-exclude"):
        call(data.run_check, tiny)
    shown = capsys.readouterr().out
    assert "12 records that cannot be used, the first 6 (all: --json):" in shown
    assert shown.count("has no area") == 6
    assert "\n1 empty files:\n" in shown
    with pytest.raises(RisError):
        call(data.run_check, dataclasses.replace(tiny, json=True), write_exclude=Path("bad.txt"))
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [len(found) for found in faults.values()] == [12, 1]

    card = Path(tiny.dataset)
    card.write_text(card.read_text().replace("[splits]", 'exclude = "bad.txt"\n[splits]', 1))
    call(data.run_check, tiny)
    assert capsys.readouterr().out.splitlines()[0] == "tiny train: 1 images, 1 refs, 2 sentences (card: 2)"
    assert [ref.name for ref in context_of(tiny).open_dataset("train").refs] == ["'dog' of a.png"]
    assert "tiny: 12 records are left out, as bad.txt says" in capsys.readouterr().err


def test_a_check_of_very_faulty_data_stays_on_one_screen(tiny, capsys):
    lines = [{"image": f"{n}.png", "ref": "x", "sentence": f"{n} " + 99 * "猫"} for n in range(300)]
    lines += [{**line, "ref": "y", "box": [2, 2, 2, 2]} for line in lines]
    with (tiny.data_root / "tiny" / "pairs.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with pytest.raises(RisError, match="300 records that cannot be used, 300 missing files"):
        call(data.run_check, tiny)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 24
    assert "note: sentences in another script" in "\n".join(shown)
    assert any(line.endswith("… and 297 more") for line in shown)


def test_sentences_that_clip_does_not_read_to_their_end_are_named(tiny, capsys):
    long = "the dog " + "left of the other dog " * 5
    path = tiny.data_root / "tiny" / "pairs.jsonl"
    path.write_text(path.read_text().replace("the cat", long.strip()))
    call(data.run_check, dataclasses.replace(tiny, json=True))
    (names,) = json.loads(capsys.readouterr().out)["remarks"].values()
    assert names == [long.strip()]


def test_what_a_list_has_of_the_images_is_printed(tiny, capsys, tmp_path):
    (tmp_path / "detector.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}]}))
    call(data.run_check, tiny, overlap=tmp_path / "detector.json")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "note: 1 of 1 images of train are in detector.json: a.png",
        "note: 0 of 1 images of val are in detector.json",
    ]


def test_shapes_are_made_once(few, capsys):
    call(data.run_make_shapes, dataclasses.replace(few, dry_run=True))
    assert not few.data_root.exists()
    call(data.run_make_shapes, few)
    call(data.run_check, few)
    capsys.readouterr()
    image = few.data_root / "few" / "images" / "000001.jpg"
    first = image.stat()
    call(data.run_make_shapes, few)
    assert "few: up to date" in capsys.readouterr().err
    assert image.stat() == first
    card = Path(few.dataset)
    card.write_text(card.read_text().replace("seed = 7", "seed = 8"))
    call(data.run_make_shapes, few)
    assert "(seed: 7 → 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('annotations = "few/refer/shapes"', 'annotations = "few/refer/mine"'),
        ('images = "few/images"', 'images = "few/photos"'),
        ('partition = "shapes"', 'partition = "unc"'),
    ],
)
def test_a_card_that_looks_elsewhere_is_refused_before_anything_is_made(few, right, wrong):
    card = Path(few.dataset)
    card.write_text(card.read_text().replace(right, wrong))
    with pytest.raises(RisError, match=re.escape(f"few: the card must have {right}, ")):
        call(data.run_make_shapes, few)
    assert not few.data_root.exists()


def test_a_copied_card_does_not_replace_the_data_set_of_the_first(few, tmp_path):
    call(data.run_make_shapes, few)
    stamp = few.data_root / "few" / "generated.json"
    made = stamp.read_bytes()
    copy = tmp_path / "more.toml"
    text = Path(few.dataset).read_text()
    copy.write_text(text.replace('name = "few"', 'name = "more"').replace("seed = 7", "seed = 8"))
    with pytest.raises(RisError, match=re.escape('more: the card must have images = "more/images", ')):
        call(data.run_make_shapes, dataclasses.replace(few, dataset=str(copy)))
    assert stamp.read_bytes() == made


def test_a_generated_set_of_another_number_of_sentences_says_what_to_write(few):
    card = Path(few.dataset)
    card.write_text(card.read_text().replace('val = "any"', "val = 1"))
    call(data.run_make_shapes, few)
    with pytest.raises(RisError, match=r'few val: .* expects 1; write the number, or "any", into the card'):
        call(data.run_check, few)


def test_shapes_never_replace_what_somebody_else_put_there(few):
    folder = few.data_root / "few"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").touch()
    with pytest.raises(RisError, match="few: exists but was not generated here"):
        call(data.run_make_shapes, few)
    assert (folder / "thesis.txt").exists()


def test_only_generated_sets_are_made(tiny):
    with pytest.raises(RisError, match="tiny is not a generated data set"):
        call(data.run_make_shapes, tiny)


CARD_WITH_SOURCES = """
name = "hosted"
format = "pairs"
annotations = "hosted"
images = "hosted/images"
[splits]
train = 1
[[fetch]]
holds = "images"
file = "images.zip"
take = "*.png"
into = "hosted/images"
sources = ["{address}/dead.zip", "{address}/images.zip"]
[[fetch]]
holds = "annotations"
file = "pairs.jsonl"
into = "hosted"
n_bytes = {n_bytes}
sources = ["{address}/pairs.jsonl"]
"""


@pytest.fixture
def hosted(tmp_path):
    """A server with a data set, the card that names it, and a data root that is empty."""
    line = json.dumps({"image": "a.png", "ref": "dog", "sentence": "the dog"}).encode()
    images, picture = io.BytesIO(), io.BytesIO()
    PIL.Image.new("RGB", (6, 4)).save(picture, "PNG")
    with zipfile.ZipFile(images, "w") as archive:
        archive.writestr("photos/a.png", picture.getvalue())
    with serve() as server:
        server.host("/images.zip", images.getvalue())
        server.host("/dead.zip", PAGE, kind="text/html")
        server.host("/pairs.jsonl", line)
        card = tmp_path / "hosted.toml"
        card.write_text(CARD_WITH_SOURCES.format(address=server.address, n_bytes=len(line)))
        yield server, card, tmp_path / "data"


def test_a_data_set_is_fetched_checked_and_not_fetched_again(hosted, capsys):
    server, card, root = hosted
    options = Options(dataset=str(card), data_root=root)
    call(data.run_fetch, options, name=str(card), data_root=root)
    assert [path for path, _ in server.asked] == ["/pairs.jsonl", "/dead.zip", "/images.zip"]
    assert f"hosted: complete in {root}" in capsys.readouterr().out
    call(data.run_check, options, deep=True)
    assert capsys.readouterr().out == "hosted train: 1 images, 1 refs, 1 sentences (card: 1)\n"
    server.asked.clear()
    call(data.run_fetch, options, name=str(card), data_root=root)
    assert server.asked == []
    assert "annotations: nothing to download" in capsys.readouterr().err


def test_what_would_be_fetched_is_printed_and_nothing_is_asked_for(hosted, capsys):
    server, card, root = hosted
    options = Options(dataset=str(card), data_root=root)
    call(data.run_fetch, options, name=str(card), data_root=root, print_only=True)
    first, second = capsys.readouterr().out.splitlines()
    address = server.address
    assert first == f"annotations: pairs.jsonl, 0.1 kB, into {root}/hosted, from {address}/pairs.jsonl"
    assert second.endswith(
        f"images.zip, size not known beforehand, into {root}/hosted/images, from {address}/dead.zip, "
        f"else {address}/images.zip"
    )
    call(data.run_fetch, dataclasses.replace(options, json=True), name=str(card), data_root=root, print_only=True)
    assert [row["there"] for row in json.loads(capsys.readouterr().out)] == [False, False]
    assert server.asked == []
    assert not root.exists()


def test_a_card_without_sources_says_what_to_do(tiny, tmp_path, capsys):
    card = tmp_path / "mine.toml"
    card.write_text(
        'name = "mine"\nformat = "pairs"\nannotations = "a"\nimages = "i"\npages = ["https://a.b/c", "https://d.e/f"]\n'
        '[splits]\ntrain = "any"\n'
    )
    by_hand = rf"fetch it by hand: https://a\.b/c or https://d\.e/f into {tiny.data_root / 'a'}"
    with pytest.raises(RisError, match=rf"mine: its card has nothing to download; {by_hand}"):
        call(data.run_fetch, tiny, name=str(card), data_root=tiny.data_root, print_only=True)
    with pytest.raises(RisError, match=r"shapes: its card has nothing to download; `ris data make-shapes` makes it"):
        call(data.run_fetch, tiny, name="shapes", data_root=tiny.data_root)
    capsys.readouterr()
    call(data.run_fetch, tiny, name="ref-zom", data_root=tmp_path, print_only=True)
    by_hand, *images = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"annotations: by hand, from https://drive\S+ or https://pan\S+ into {tmp_path}/refer/ref-zom", by_hand
    )
    assert [line.split()[1] for line in images] == ["train2014.zip,", "val2014.zip,"]
    with pytest.raises(
        RisError, match=r"put .*refs\(final\)\.p, .* fetch them by hand from https://drive.* or https://pan"
    ):
        call(data.run_fetch, tiny, name="ref-zom", data_root=tmp_path)


def test_a_missing_data_set_names_the_command_that_fetches_it(tmp_path):
    with pytest.raises(RisError, match=r"refcoco is not complete: put .*; `ris data fetch refcoco` gets it"):
        call(data.run_check, Options(dataset="refcoco", data_root=tmp_path))


def test_own_images_become_a_data_set(tmp_path, capsys):
    photos = tmp_path / "my photos"
    photos.mkdir()
    PIL.Image.new("RGB", (6, 4)).save(photos / "a.png")
    (photos / "a.txt").write_text("the dog\nthe cat\n")
    root, options = tmp_path / "data", Options()
    call(data.run_import, options, source=photos, name="mine", data_root=root)
    output = capsys.readouterr()
    assert output.out == f"{root}/mine.toml\n"
    assert "mine: 2 sentences of 2 refs in 1 images" in output.err
    call(data.run_check, Options(dataset=str(root / "mine.toml"), data_root=root), deep=True)
    assert capsys.readouterr().out == "mine train: 1 images, 2 refs, 2 sentences (card: any number)\n"
    with pytest.raises(RisError, match=r"mine\.toml: exists; choose another name, or --force"):
        call(data.run_import, options, source=photos, name="mine", data_root=root)
    (photos / "a.txt").write_text("the dog\n")
    call(data.run_import, options, source=photos, name="mine", data_root=root, force=True)
    assert "mine: 1 sentences" in capsys.readouterr().err
    with pytest.raises(RisError, match=r"'\.\./mine' must be a word"):
        call(data.run_import, options, source=photos, name="../mine", data_root=root)


def test_list_says_what_is_there(tmp_path, capsys):
    folder = tmp_path / "refer" / "refcoco"
    folder.mkdir(parents=True)

    def there():
        data.run_list(Output(json=True), tmp_path)
        return {row["name"]: row["there"] for row in json.loads(capsys.readouterr().out)}

    assert there()["refcoco"] == "–"
    for name in ("refs(unc).p", "instances.json"):
        (folder / name).write_bytes(b"")
    assert there()["refcoco"] == "no images"
    (tmp_path / "train2014").mkdir()
    assert (there()["refcoco"], there()["refcoco+"]) == ("whole", "–")
