import pytest

from ris_pipeline.artifacts.layout import command_of


@pytest.mark.parametrize(
    ("stage", "flags", "command"),
    [
        ("step1", {"method": "amr", "limit": "first-3"}, "ris train-step1 --method amr --limit 3"),
        ("responses", {"split": "val"}, "ris dump-responses --split val"),
        ("pseudolabels", {"refine": False, "method": "gbs"}, "ris make-pseudolabels --no-refine --method gbs"),
        ("step2", {"labels": "pseudo"}, "ris train-step2"),
        ("step2", {"labels": "true"}, "ris train-step2 --oracle"),
        ("step2", {"labels": "pseudo", "round": "round-2"}, "ris train-step2 --round 2"),
        ("pseudolabels", {"round": "round-3"}, "ris make-pseudolabels --round 3"),
        ("scores", {"scored": "step1", "split": "val"}, "ris score --split val"),
    ],
)
def test_flags_as_a_command(stage, flags, command):
    assert command_of(stage, flags) == command
