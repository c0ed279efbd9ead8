import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.config import (
    CONFIGS,
    PseudolabelConfig,
    ResponsesConfig,
    ScoreConfig,
    Step1Config,
    Step2Config,
    config_from_manifest,
    load_config_file,
    parse_assignments,
    record_settings,
    resolve,
)
from ris_pipeline.errors import RisError


def test_defaults_are_those_of_the_paper():
    step1 = resolve(Step1Config)
    assert (step1.input_size, step1.epochs, step1.batch_size, step1.hidden) == (320, 15, 48, 1024)
    assert (step1.lr, step1.backbone_lr, step1.weight_decay, step1.poly_power) == (5e-5, 5e-6, 0.01, 0.9)
    assert (step1.weight_cls, step1.weight_pos, step1.weight_neg, step1.n_negatives) == (5, 1, 2, 3)
    labels = resolve(PseudolabelConfig)
    assert (labels.fg_threshold, labels.bg_threshold, labels.beta, labels.log2_steps) == (0.3, 0.1, 10, 8)


@pytest.mark.parametrize("cls", CONFIGS.values())
def test_every_default_lies_in_its_own_range(cls):
    assert resolve(cls, dataclasses.asdict(cls())) == cls()


def test_an_option_of_a_later_version_is_recorded_where_it_is_used():
    """Artifacts that were made before there was the option have no value of it."""
    before = record_settings(PseudolabelConfig())
    assert before["max_side"] == 640
    assert "compete" not in before
    assert record_settings(PseudolabelConfig(compete=True)) == {**before, "compete": True}


def test_the_last_layer_wins():
    card, file, assignments = {"epochs": 3, "hidden": 64}, {"epochs": 4}, {"epochs": "5"}
    config = resolve(Step1Config, card, file, assignments)
    assert (config.epochs, config.hidden, config.batch_size) == (5, 64, 48)


@pytest.mark.parametrize(
    ("cls", "key", "text", "value"),
    [
        (Step1Config, "lr", "1e-3", 1e-3),
        (Step1Config, "lr", 1, 1.0),
        (Step1Config, "epochs", "7", 7),
        (Step1Config, "clip_weights", "none", None),
        (Step1Config, "clip_weights", "weights/clip.pt", "weights/clip.pt"),
        (ResponsesConfig, "prms", "False", False),
        (ResponsesConfig, "prms", "true", True),
        (Step1Config, "clip", "7", "7"),
        (ResponsesConfig, "prms_mask", "sigmoid", "sigmoid"),
    ],
)
def test_values_take_the_type_of_their_field(cls, key, text, value):
    found = getattr(resolve(cls, {key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("cls", "layer", "message"),
    [
        (Step2Config, {"epoch": 3}, "unknown key 'epoch' of Step2Config; did you mean 'epochs'"),
        (ScoreConfig, {"zzz": 3}, "unknown key 'zzz' of ScoreConfig; known: bootstrap"),
        (Step1Config, {"epochs": "many"}, "epochs = 'many': .*integer"),
        (Step1Config, {"epochs": 1.5}, "epochs = 1.5: .*integer"),
        (Step1Config, {"epochs": True}, "epochs = True: .*integer"),
        (Step1Config, {"epochs": 0}, "epochs = 0: .* 1$"),
        (Step1Config, {"lr": float("nan")}, "lr = nan: .*finite"),
        (Step1Config, {"lr": "nan"}, "lr = 'nan': .*number"),
        (Step1Config, {"clip": 3}, "clip = 3: .*string"),
        (Step1Config, {"clip_weights": 3}, "clip_weights = 3: .*string"),
        (ResponsesConfig, {"prms": "perhaps"}, "prms = 'perhaps': .*bool"),
        (ResponsesConfig, {"prms_mask": "tanh"}, "prms_mask = 'tanh': .*'relu', 'sigmoid'"),
        (PseudolabelConfig, {"threshold": 1.5}, "threshold = 1.5: .* 1$"),
    ],
)
def test_a_wrong_value_is_named(cls, layer, message):
    with pytest.raises(RisError, match=message):
        resolve(cls, layer)


@given(st.floats(min_value=1e-12, allow_infinity=False), st.integers(min_value=1))
def test_what_is_printed_can_be_set_again(lr, epochs):
    config = Step1Config(lr=lr, epochs=epochs)
    printed = [f"{key}={value}" for key, value in dataclasses.asdict(config).items()]
    assert resolve(Step1Config, parse_assignments(printed)) == config


def test_config_file_has_one_table_per_stage(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[step1]\nlr = 1e-3\n[step2]\nepochs = 2\n")
    assert load_config_file(path, "step1", CONFIGS) == {"lr": 1e-3}
    assert load_config_file(path, "scores", CONFIGS) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stpe1]\nlr = 1", r"unknown table \[stpe1\]; did you mean 'step1'"),
        ("step1 = 3", "step1 must be a table"),
        ("lr = = 3", "not a TOML file"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RisError, match=rf"mine\.toml: {message}"):
        load_config_file(path, "step1", CONFIGS)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(RisError, match=r"mine\.toml: cannot read"):
        load_config_file(tmp_path / "mine.toml", "step1", CONFIGS)


def test_assignments():
    assert parse_assignments(["a=1", " b = x=y", "a=2"]) == {"a": "2", "b": "x=y"}
    with pytest.raises(RisError, match="--set lr: write --set key=value"):
        parse_assignments(["lr"])


@pytest.mark.parametrize("stage", CONFIGS)
def test_every_key_is_read(stage):
    """A key that no code reads would change the digest and nothing else."""
    root = Path(__file__).parents[1] / "ris_pipeline"
    code = "".join(path.read_text() for path in root.rglob("*.py"))
    read = set(re.findall(r"\b(?:config|resolved|c)\.(\w+)", code))
    read |= set(re.findall(r"\bself\.(\w+)", (root / "config.py").read_text()))  # its properties
    assert [field.name for field in dataclasses.fields(CONFIGS[stage]) if field.name not in read] == []


def test_configuration_of_an_artifact():
    manifest = {"configuration": {"hidden": 64, "clip": "shapes", "seed": 3, "precision": "bf16"}, "stage": "step1"}
    assert config_from_manifest(Step1Config, manifest) == Step1Config(hidden=64, clip="shapes")
