"""Official checkpoints through our code against an evaluation that knows nothing of it: within 1e-4 of the range."""

import warnings

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
import torchvision.transforms.functional as tvf

from ris_pipeline import Segmenter
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.images import load_image, normalise, to_pixels
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import irnet_from_config
from ris_pipeline.networks.weights.released import read_released

SENTENCE = (
    "the small brown dog that stands behind a tall man in his long grey coat on the left side "
    "of an old red bus which has just stopped near some empty wooden tables"
)
WORDS = SENTENCE.split()
RNG = np.random.default_rng(0)


def picture(height, width):
    """uint8 (H, W, 3): coarse blocks and noise, so that positions differ."""
    blocks = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    large = np.array(PIL.Image.fromarray(blocks).resize((width, height), PIL.Image.Resampling.NEAREST), np.int64)
    return np.clip(large + RNG.integers(-30, 30, large.shape), 0, 255).astype(np.uint8)


def save(path, image, mode, **options):
    converted = PIL.Image.fromarray(image).convert(mode)
    if "A" in mode:
        converted.putalpha(PIL.Image.fromarray(image[:, :, 0]))
    converted.save(path, **options)
    return path


def rotated(tmp_path, image):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which the released code does not follow
    return save(tmp_path / "a.jpg", image, "RGB", exif=exif)


IMAGES = {
    "grey": lambda folder: save(folder / "a.png", picture(47, 33), "L"),
    "palette": lambda folder: save(folder / "a.png", picture(200, 301), "P"),
    "alpha": lambda folder: save(folder / "a.png", picture(640, 427), "RGBA"),
    "grey-alpha": lambda folder: save(folder / "a.png", picture(50, 400), "LA"),
    "one-bit": lambda folder: save(folder / "a.png", picture(64, 64), "1"),
    "cmyk": lambda folder: save(folder / "a.jpg", picture(100, 80), "CMYK"),
    "rotated": lambda folder: rotated(folder, picture(375, 500)),
    "input-size": lambda folder: save(folder / "a.bmp", picture(320, 320), "RGB"),
    "one-row": lambda folder: save(folder / "a.png", picture(1, 90), "RGB"),
}


@pytest.fixture(scope="module")
def step1(tiny_files):
    return Segmenter.load(tiny_files["tris-step1"])


@pytest.fixture(scope="module")
def step2(tiny_files):
    return Segmenter.load(tiny_files["tris-step2"])


def assert_within(found, expected, share=1e-4):
    reach = expected.max() - expected.min()
    assert reach > 0.01, "an even map would show nothing"
    assert np.abs(found - expected).max() <= share * reach


def segment_as_released(segmenter, path, sentences):
    """Not turned by EXIF; what exceeds the tokens is cut, as there."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return segmenter(load_image(path), sentences)


def compare_step1(segmenter, maps, path, sentences):
    for prediction, expected in zip(segment_as_released(segmenter, path, sentences), maps, strict=True):
        assert prediction.map.shape == expected.shape
        if expected.any():
            assert_within(prediction.map, expected)
        unsure = np.maximum(prediction.map, expected) < 1e-4
        np.testing.assert_array_equal((prediction.mask != (expected > 1e-9)) & ~unsure, False)


def compare_step2(segmenter, logits, path, sentences):
    for prediction, expected in zip(segment_as_released(segmenter, path, sentences), logits, strict=True):
        assert prediction.map.shape == expected.shape
        assert_within(prediction.map, 1 / (1 + np.exp(-expected)))
        unsure = np.abs(expected) < 1e-4 * (expected.max() - expected.min())
        np.testing.assert_array_equal((prediction.mask != (expected > 0)) & ~unsure, False)


@pytest.mark.parametrize("form", IMAGES)
def test_images_of_any_size_and_mode(form, step1, step2, released_state, independent, tmp_path):
    path, sentences = IMAGES[form](tmp_path), [" ".join(WORDS[:4])]
    maps = independent.step1_maps(released_state("tris-step1"), path, sentences)
    compare_step1(step1, maps, path, sentences)
    logits = independent.step2_logits(released_state("tris-step2"), path, sentences)
    compare_step2(step2, logits, path, sentences)


def test_sentences_of_1_to_30_words(step1, step2, released_state, independent, tmp_path):
    path = IMAGES["palette"](tmp_path)
    sentences = [" ".join(WORDS[:n]) for n in range(1, 31)]
    assert len(sentences[-1].split()) == 30
    maps = independent.step1_maps(released_state("tris-step1"), path, sentences)
    compare_step1(step1, maps, path, sentences)
    assert sum(bool(response.any()) for response in maps) > 15
    sentences = [sentences[n - 1] for n in (1, 2, 5, 12, 17, 18, 19, 20, 30)]  # 18 pieces are the most that fit
    logits = independent.step2_logits(released_state("tris-step2"), path, sentences)
    compare_step2(step2, logits, path, sentences)


@pytest.mark.parametrize("form", IMAGES)
def test_our_input_is_the_released_transforms(form, independent, tmp_path):
    path = IMAGES[form](tmp_path)
    pixels, hw = independent.read(path)
    image = load_image(path)
    assert image.shape[:2] == hw
    resized = np.array(PIL.Image.fromarray(image).resize((320, 320), PIL.Image.Resampling.BILINEAR))
    expected = np.array(tvf.resize(PIL.Image.open(path).convert("RGB"), [320, 320]))
    np.testing.assert_array_equal(resized, expected)
    assert torch.equal(to_pixels(image, 320), pixels[0])  # to the last bit


def test_a_long_sentence_keeps_its_end_token(step1):
    """The released code cuts the 77 tokens at 20; then the largest id, where the text is read, is another word's."""
    long = " ".join(["zebra", *WORDS[:25]])
    ours = step1.responder.network.clip.tokenize([long])
    released = open_clip.tokenize([long])[:, :20]
    assert ours[0, :19].tolist() == released[0, :19].tolist()
    assert ours[0, 19] == 49407
    assert 49407 not in released


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["tris-step1", "tris-step2"])
def test_at_full_size(kind, released_state, write_released, independent, tmp_path):
    state = released_state(kind, full=True)
    assert len(state) == {"tris-step1": 518, "tris-step2": 625}[kind]
    path, sentences = IMAGES["rotated"](tmp_path), [" ".join(WORDS[:n]) for n in (1, 5, 30)]
    segmenter = Segmenter.load(write_released(kind, state, tmp_path / "official.pth"))
    n_values = sum(value.numel() for value in segmenter.responder.network.parameters())
    assert n_values == {"tris-step1": 113_559_906, "tris-step2": 142_085_869}[kind]
    if kind == "tris-step1":
        compare_step1(segmenter, independent.step1_maps(state, path, sentences), path, sentences)
    else:
        compare_step2(segmenter, independent.step2_logits(state, path, sentences), path, sentences)


@pytest.mark.parametrize("hw", [(64, 96), (75, 101)])
def test_irnet(hw, tiny_files, released_state, independent):
    state, image = released_state("irn"), picture(*hw)
    net = irnet_from_config(PseudolabelConfig(irnet=str(tiny_files["irn"]))).eval()
    edge, displacement = net.boundary_displacement(normalise(image)[None])
    pixels = tvf.normalize(tvf.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected_edge, expected_displacement = independent.irn_outputs(state, pixels)
    assert edge[0, 0].shape == expected_edge.shape
    assert_within(edge[0, 0].numpy(), expected_edge.numpy())
    assert_within(displacement[0].numpy(), expected_displacement.numpy())


@pytest.mark.parametrize(
    ("name", "layers", "embed"), [("RN50-quickgelu", (3, 4, 6, 3), 1024), ("RN101-quickgelu", (3, 4, 23, 3), 512)]
)
def test_the_clip_is_told_by_its_sizes(name, layers, embed, official_shapes, tmp_path):
    """The two CLIPs that the released code can be called with; values play no part."""
    shapes = official_shapes(layers=layers, embed=embed)
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({"model": tensors}, tmp_path / "a.pth")
    config = read_released(tmp_path / "a.pth").config
    assert (config.clip, config.hidden) == (name, 1024)


def test_openais_clip(released_state, write_released, tmp_path):
    state = released_state("clip")
    released = read_released(write_released("clip", state, tmp_path / "RN50.pt"))
    assert released.kind == "clip"
    assert released.clip_config["quick_gelu"]
    loaded = Clip.from_config(released.clip_config).model
    loaded.load_state_dict(released.tensors)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
