"""The examples in docstrings are run as they stand."""

import doctest
import importlib

import pytest

WITH_EXAMPLES = [
    "ris_pipeline.maps.rule",
    "ris_pipeline.maps.store",
    "ris_pipeline.networks.load",
    "ris_pipeline.predict",
    "ris_pipeline.scoring.metrics",
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
