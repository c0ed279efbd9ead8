"""The page, asked for over HTTP as a browser asks: a real server on a real socket, with a tiny network."""

import base64
import dataclasses
import io
import json
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from calls import Options, call, context_of
from ris_pipeline import demo
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError
from stages import demo as command

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A Step-1 of random values, as an artifact."""
    import torch
    from safetensors.torch import save_file

    from ris_pipeline.artifacts.layout import WEIGHTS
    from ris_pipeline.networks.load import step1_from_config

    root = tmp_path_factory.mktemp("demo")
    (root / "tiny.toml").write_text(
        'name = "tiny"\nformat = "pairs"\nannotations = "a"\nimages = "a"\n[splits]\ntrain = "any"\n'
    )
    (root / "data" / "a").mkdir(parents=True)
    (root / "data" / "a" / "pairs.jsonl").write_text("")
    options = Options(dataset=str(root / "tiny.toml"), data_root=root / "data", runs=root / "runs")
    config = Step1Config(clip=str(tiny_clip), clip_weights=None, input_size=64, hidden=16)
    torch.manual_seed(0)
    request = context_of(options).request("step1", config)
    with publish(request) as work:
        weights = {name: value.contiguous() for name, value in step1_from_config(config).state_dict().items()}
        save_file(weights, work.path / WEIGHTS)
    artifact = find(request)
    assert artifact is not None
    return artifact.path


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    """Where the running page is."""
    page = demo.build_demo(context_of(Options(device="cpu")), "127.0.0.1", 0, checkpoint)
    thread = threading.Thread(target=page.run)
    thread.start()
    yield page.url
    page.server.should_exit = True
    thread.join()


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=30) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    pixels = np.arange(3 * width * height) % 256
    PIL.Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3)).save(file, "PNG")
    return file.getvalue()


def read(url: str) -> np.ndarray:
    return np.array(PIL.Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def segment(address: str, data: bytes, *sentences: str, content_type: str = "application/octet-stream"):
    query = urllib.parse.urlencode([("sentence", sentence) for sentence in sentences])
    status, text, _ = ask(f"{address}/segment?{query}", data, content_type=content_type)
    return status, json.loads(text)


def test_the_page_loads_what_it_names_and_nothing_from_elsewhere(address, checkpoint):
    status, text, headers = ask(address)
    assert status == 200
    assert str(checkpoint) in text
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    names = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert names == ["data:,", "/page.css", "/page.js"]  # an empty icon: browsers would ask for one
    for name in names[1:]:
        assert ask(address + name)[0] == 200
    assert "//" not in re.sub(r"^\s*//.*|; //.*", "", ask(address + "/page.js")[1], flags=re.MULTILINE)


def test_masks_and_maps_are_those_of_the_network(address, checkpoint):
    from ris_pipeline.predict import Segmenter

    status, found = segment(address, png(50, 30), "the star", " left circle ")
    assert status == 200
    image = np.array(PIL.Image.open(io.BytesIO(png(50, 30))))
    expected = Segmenter.load(checkpoint)(image, ["the star", "left circle"])
    for result, prediction in zip(found["results"], expected, strict=True):
        np.testing.assert_array_equal(read(result["mask"])[..., 1] == 255, prediction.mask)
        assert result["share"] == pytest.approx(prediction.mask.mean(), abs=1e-6)
        assert read(result["map"]).shape == (30, 50, 3)
    assert [result["sentence"] for result in found["results"]] == ["the star", "left circle"]


def test_a_sentence_that_is_cut_is_named(address):
    long = "the small thing that is near the other thing on the left side of the picture, namely the purple heart"
    assert segment(address, png(50, 30), "the star")[1]["remark"] == ""
    assert "the end is cut" in segment(address, png(50, 30), "the star", long)[1]["remark"]


@pytest.mark.parametrize(
    ("data", "sentences", "content_type", "error"),
    [
        (b"no image", ["a dog"], "application/octet-stream", "not a readable image"),
        (png(4, 4), [], "application/octet-stream", "write one to 20 sentences"),
        (png(4, 4), [" "], "application/octet-stream", "write one to 20 sentences"),
        (png(4, 4), ["a dog"], "text/plain", "as application/octet-stream"),
    ],
    ids=["data", "no sentence", "empty sentence", "type"],
)
def test_what_cannot_be_segmented_is_told(address, data, sentences, content_type, error):
    status, found = segment(address, data, *sentences, content_type=content_type)
    assert status == 400
    assert error in found["error"]


def test_too_many_bytes_or_pixels(address, monkeypatch):
    monkeypatch.setattr(demo, "MAX_BYTES", 100)
    assert "scale it down" in segment(address, png(50, 30), "a dog")[1]["error"]
    monkeypatch.setattr("ris_pipeline.datasets.io.files.MAX_PIXELS", 10)
    with pytest.raises(RisError, match="more than 10 pixels"):
        demo.read_image(png(4, 4))


def test_another_name_for_this_computer_is_refused(address):
    assert ask(address, Host="evil.example")[0] == 400
    assert ask(address, Host="localhost:8000")[0] == 200


def turned(width: int, height: int) -> bytes:
    """A photograph of that size that EXIF turns by 90° to show."""
    picture = PIL.Image.open(io.BytesIO(png(width, height)))
    exif = picture.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_images_stand_upright_and_are_scaled_down(address):
    assert demo.read_image(turned(3000, 100)).shape == (1024, 34, 3)
    status, found = segment(address, turned(50, 30), "a dog")
    assert status == 200
    assert read(found["results"][0]["mask"]).shape[:2] == (50, 30)


def test_raw_orientation_reads_and_shows_the_pixels_as_stored(checkpoint):
    """The browser would turn the file: what it shows is the picture that the program read."""
    context = context_of(Options(device="cpu"))
    page = demo.build_demo(context, "127.0.0.1", 0, checkpoint, upright=False)
    thread = threading.Thread(target=page.run)
    thread.start()
    try:
        assert '<body data-orientation="raw">' in ask(page.url)[1]
        assert read(segment(page.url, turned(50, 30), "a dog")[1]["results"][0]["map"]).shape == (30, 50, 3)
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{page.url}/picture", turned(50, 30), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            shown = np.array(PIL.Image.open(io.BytesIO(answer.read())))
        np.testing.assert_array_equal(shown, np.array(PIL.Image.open(io.BytesIO(png(50, 30)))))
        status, text, _ = ask(f"{page.url}/picture", b"no image", content_type="application/octet-stream")
        assert status == 400
        assert "not a readable image" in text
    finally:
        page.server.should_exit = True
        thread.join()


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_page_that_others_reach_is_warned_of(host, is_open, checkpoint, capsys, monkeypatch):
    def run(server, sockets):
        sockets[0].close()

    monkeypatch.setattr("uvicorn.Server.run", run)
    call(command.run, Options(device="cpu"), host=host, port=0, checkpoint=checkpoint, raw_orientation=True)
    assert ("asks for no password" in capsys.readouterr().err) == is_open


def test_a_dry_run_of_the_demo(checkpoint, capsys):
    call(command.run, Options(dry_run=True), host="127.0.0.1", port=8000, checkpoint=checkpoint)
    assert f"would serve {checkpoint} on 127.0.0.1:8000" in capsys.readouterr().err


def test_what_is_in_the_way(checkpoint, tmp_path, monkeypatch):
    options = dataclasses.replace(Options(), runs=tmp_path, device="cpu")
    with pytest.raises(RisError, match="no finished step1 yet; run: ris train-step1"):
        call(command.run, dataclasses.replace(options, dataset="refcoco"), port=0)
    with pytest.raises(RisError, match=f"no such checkpoint; .*; did you mean {checkpoint.parent}"):
        call(command.run, options, port=0, checkpoint=checkpoint.parent.with_name("stpe1"))
    context = context_of(options)
    with demo.build_demo(context, "127.0.0.1", 0, checkpoint).listener as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RisError, match=f"127.0.0.1:{port}: cannot listen there: .*choose another --port"):
            demo.build_demo(context, "127.0.0.1", port, checkpoint)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RisError, match=r"pip install -c constraints.txt -e '\.\[demo\]'"):
        demo.build_demo(context, "127.0.0.1", 0, checkpoint)
