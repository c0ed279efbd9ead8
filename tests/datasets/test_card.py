from pathlib import Path

import pytest

from ris_pipeline.datasets import card as card_module
from ris_pipeline.datasets.card import list_cards, load_card, read_card
from ris_pipeline.errors import RisError

GOOD = """
name = "mine"
format = "refer"
partition = "unc"
annotations = "refer/mine"
images = "train2014"
[splits]
train = 12
val = "any"
[config.step1]
epochs = 3
"""
FETCH = """
[[fetch]]
holds = "images"
sources = ["{}/a.zip"]
file = "{}"
into = "train2014"
digest = "{}"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(card_module, "CARD_FOLDERS", (tmp_path / "here", tmp_path))
    return tmp_path


def write(folder, text, name="mine"):
    path = folder / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_every_shipped_card_says_where_its_files_come_from():
    without = [card.name for card in list_cards() if not (card.fetch or card.hub or card.pages or card.generate)]
    assert without == ["pairs"]


def test_card(tmp_path):
    card = read_card(write(tmp_path, GOOD))
    assert card.name == "mine"
    assert card.annotations == Path("refer/mine")
    assert card.splits == {"train": 12, "val": None}
    assert card.config == {"step1": {"epochs": 3}}
    assert card.generate == {}
    assert load_card(tmp_path / "mine.toml") == card
    card.check_split("val")
    with pytest.raises(RisError, match="mine has no split 'test'; known: train, val"):
        card.check_split("test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"refer"', '"refr"', "format = 'refr': .*'refer'"),
        ("images =", "image =", "unknown key 'image' of Card; did you mean 'images'"),
        ('images = "train2014"', "", "'images' must be given"),
        ('"train2014"', "3", "images = 3: .*path"),
        ('name = "mine"', 'name = "other"', "'other' must be the file's, 'mine'"),
        ("train = 12", "train = 0", r"splits\.train.* = (0|True): "),
        ("train = 12", "train = true", r"splits\.train.* = (0|True): "),
        ('train = 12\nval = "any"', "", "splits = {}: .*at least 1"),
        ("[config.step1]\nepochs = 3", "[config]\nstep1 = 3", "config.step1 = 3: .*dictionary"),
        ("[config.step1]", "[oracle.test]\nmiou = [1, 0, 2]\n[config.step1]", r"\[oracle.test\] names no split"),
        ("[config.step1]", "[oracle.val]\nmiou = [1, 0]\n[config.step1]", r"oracle\.val\.miou\.2' must be given"),
        ("train = 12", "train = ", "not valid TOML"),
        ("[config.step1]", FETCH.format("file:///etc/passwd", "a.zip", "md5:1") + "[config.step1]", "sources"),
        ("[config.step1]", FETCH.format("https://a", "../a.zip", "md5:1") + "[config.step1]", r"fetch\.0\.file"),
        ("[config.step1]", FETCH.format("https://a", "a.zip", "md5:1") + "[config.step1]", r"fetch\.0\.digest"),
    ],
)
def test_faulty_cards(old, new, message, tmp_path):
    assert old in GOOD
    with pytest.raises(RisError, match=r"mine\.toml.*" + message):
        read_card(write(tmp_path, GOOD.replace(old, new)))


def test_missing_card_file(tmp_path):
    with pytest.raises(RisError, match=r"x\.toml cannot be read"):
        load_card(tmp_path / "x.toml")


def test_a_card_in_the_working_folder_hides_the_one_in_the_checkout(folder):
    write(folder, GOOD)
    write(folder / "here", GOOD.replace("12", "13"))
    assert [card.name for card in list_cards()] == ["mine"]
    assert load_card("mine").splits["train"] == 13


def test_no_cards(folder):
    with pytest.raises(RisError, match="no cards in"):
        load_card("mine")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("refcoco", "refcoco"),
        ("refcoco@unc", "refcoco"),
        ("refcoco-unc", "refcoco"),
        ("refcoco+@unc", "refcoco+"),
        ("refcocog@umd", "refcocog-umd"),
        ("refcocog-umd", "refcocog-umd"),
        ("refcocog@google", "refcocog-google"),
        ("referit@berkeley", "referit"),
        ("pairs", "pairs"),
        # as papers, REFER's API and TRIS's logs write them
        ("RefCOCO", "refcoco"),
        ("RefCOCO+", "refcoco+"),
        ("RefCOCOg (UMD)", "refcocog-umd"),
        ("refcocog_google", "refcocog-google"),
        ("refcoco_unc", "refcoco"),
        ("ReferIt", "referit"),
    ],
)
def test_aliases(alias, name):
    assert load_card(alias).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refcoco@umd", "use refcoco@unc [(]train 120,624, val 10,834, testA 5,657, testB 5,095 sentences[)]$"),
        ("refcoco+@google", r"use refcoco\+@unc [(]"),
        ("refcoco-umd", "use refcoco@unc [(]"),
        ("RefCOCO+ (UMD)", r"use refcoco\+@unc [(]"),
        (
            "refcocog",
            r"use refcocog@google \(train 85,474, val 9,536 sentences\) or "
            r"refcocog@umd \(train 80,512, val 4,896, test 9,602 sentences\)$",
        ),
        ("refcocog@unc", "use refcocog@google [(].* or refcocog@umd [(]"),
        ("refcco", "did you mean 'refcoco'"),
        ("shape", "did you mean 'shapes'"),
        ("qqqq", "no data set 'qqqq'; known: .*pairs, "),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(RisError, match=message):
        load_card(name)


# The paper's supplemental material, table of the data sets.
PAPER = {
    "refcoco": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog-google": {"train": 85_474, "val": 9_536},
    "refcocog-umd": {"train": 80_512, "val": 4_896, "test": 9_602},
    "referit": {"train": 59_976, "test": 60_105},
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_counts(name):
    assert load_card(name).splits == PAPER[name]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("refcocog-google", "test", "refcocog-google has no split 'test'; refcocog-umd has it$"),
        ("refcocog-umd", "testA", "refcocog-umd has no split 'testA'; known: train, val, test$"),
        ("refcoco", "test", "refcoco has no split 'test'; known: train, val, testA, testB$"),
        ("referit", "testB", "referit has no split 'testB'; known: train, test$"),
    ],
)
def test_a_split_of_another_partition(name, split, message):
    with pytest.raises(RisError, match=message):
        load_card(name).check_split(split)


def test_every_shipped_card_loads():
    names = [card.name for card in list_cards()]
    assert {*PAPER, "shapes", "shapes+", "shapesg", "pairs"} <= set(names)
    assert all(load_card(name).generate for name in names if name.startswith("shapes"))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_data_can_be_fetched_to_where_the_card_looks(name):
    card = load_card(name)
    annotations, images = card.fetch
    assert (annotations.holds, images.holds) == ("annotations", "images")
    assert card.annotations in (
        annotations.into,
        annotations.into.parent,
    )  # ReferIt's pickles lie in a folder of their own
    assert images.into == card.images


def test_the_embedded_data_sets_have_one_recipe_and_an_upper_bound_each():
    cards = [load_card(name) for name in ("shapes", "shapes+", "shapesg")]
    assert cards[0].config == cards[1].config == cards[2].config
    for card in cards:
        assert set(card.oracle) == set(card.splits) - {"train"}
        for metrics in card.oracle.values():
            assert all(low < value < high for value, low, high in metrics.values())
