"""Scores while training: those that the finished network would get."""

from dataclasses import replace

import pytest

from ris_pipeline.config import ResponsesConfig
from ris_pipeline.datasets.records import Annotation
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import fill_responses, open_store
from ris_pipeline.methods.tris import Step1Responder, Step2Responder
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.scoring.evaluate import evaluate_maps, evaluate_network
from ris_pipeline.scoring.metrics import summarise
from ris_pipeline.scoring.validate import take_refs, validate
from tiny import TINY, build_random, make_noise

LEFT_HALF = {"size": [40, 40], "counts": [0, 800, 800]}


@pytest.fixture
def dataset(tmp_path):
    """Six refs with masks; three of them have boxes."""
    noise = make_noise(tmp_path, LEFT_HALF)
    boxed = (
        replace(ref, annotations=(replace(ref.annotations[0], box_xyxy=(0.0, 0.0, 20.0, 40.0)),))
        for ref in noise.refs[:3]
    )
    return replace(noise, refs=(*boxed, *noise.refs[3:]))


def test_step1_is_validated_as_its_dump_is_scored(dataset, tmp_path):
    clip = build_random(TINY)
    responder = Step1Responder(Step1(clip, clip, hidden=8).eval(), 64)
    store = open_store(tmp_path / "val.zarr", dataset, responder, {})
    fill_responses(
        responder, None, dataset, store, store.missing_blocks(scored=False), ResponsesConfig(), lambda n: None
    )
    expected = summarise(list(evaluate_maps(dataset, store)), n_bootstrap=10)
    found = validate(responder, dataset, batch_size=2)
    assert set(found) == {"pointit", "miou"}
    assert found["pointit"] == expected["pointit"].value
    assert found["miou"] == pytest.approx(expected["miou"].value)
    assert 0 < found["miou"] < 100


def test_step2_is_validated_as_it_is_scored(dataset):
    clip = build_random(TINY)
    responder = Step2Responder(Step2(clip, clip, widths=(4, 4, 4, 4)).eval(), 64)
    outcomes = list(evaluate_network(dataset, responder, 16))
    assert validate(responder, dataset, 2)["miou"] == pytest.approx(
        100 * sum(outcome.iou for outcome in outcomes) / len(outcomes)
    )


def test_the_first_refs_are_taken(dataset):
    assert [ref.ref_id for ref in take_refs(dataset, 2, "last").refs] == [50, 51]
    assert take_refs(dataset, 0, "miou").refs == dataset.refs


@pytest.mark.parametrize(
    ("select", "box", "mask", "missing"),
    [
        ("last", None, None, "boxes or masks"),
        ("miou", (0.0, 0.0, 9.0, 9.0), None, "masks"),
        ("pointit", None, LEFT_HALF, "boxes"),
        ("last", None, LEFT_HALF, None),
        ("pointit", (0.0, 0.0, 9.0, 9.0), None, None),
    ],
)
def test_what_is_to_be_selected_by_needs_its_ground_truth(select, box, mask, missing, dataset):
    refs = tuple(replace(ref, annotations=(Annotation(box, mask),)) for ref in dataset.refs)
    poor = replace(dataset, refs=refs)
    if missing is None:
        assert take_refs(poor, 0, select).refs == refs
    else:
        with pytest.raises(RisError, match=f"no {missing} to validate on"):
            take_refs(poor, 0, select)
