"""What is said of pseudo-labels once they are made."""

import pytest

from ris_pipeline.chain.pseudolabels import describe_labels


@pytest.mark.parametrize(("empty", "is_warned"), [(49, False), (50, True), (100, True)])
def test_labels_of_which_half_are_empty_are_warned_of(empty, is_warned):
    line = describe_labels({"refs": 100, "empty": empty, "tiny": 3, "ignored_per_mille": 25})
    assert f"100 pseudo-labels: {empty} empty, 3 tiny, 2.5 % of the pixels ignored" in line
    assert line.startswith("warning: ") == is_warned
