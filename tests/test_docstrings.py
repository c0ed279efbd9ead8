"""The examples in docstrings are run as they stand."""

import doctest
import importlib

import pytest

WITH_EXAMPLES = ["ris_pipeline.networks.load"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
