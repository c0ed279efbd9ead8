from pathlib import Path

import pytest

from ris_pipeline.artifacts.find import compare_identities, find_variant, list_variants, pair_scores
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError


def make(runs: Path, stage: str, *inputs: Artifact, flags: dict | None = None, seed: int = 0, **configuration):
    named = {"data": "d", **{artifact.name: artifact.digest for artifact in inputs}}
    request = Request(runs, "tiny", stage, configuration, named, flags or {}, seed)
    with publish(request):
        pass
    return next(artifact for artifact in list_variants(runs, "tiny") if artifact.digest == request.path.name)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make_scores(runs: Path, source: Artifact, scored: str, split: str) -> Artifact:
    return make(runs, "scores", source, flags={"scored": scored, "split": split})


def make_branch(runs: Path, **step1) -> tuple[Artifact, Artifact, Artifact]:
    """A Step-1, the responses and the Step-2 made of it."""
    first = make(runs, "step1", **step1)
    responses = make(runs, "responses", first, flags={"split": "train"})
    return first, responses, make(runs, "step2", responses, flags={"labels": "pseudo"}, lr=1)


def test_all_variants_in_the_order_of_the_stages(runs):
    step2 = make_branch(runs, epochs=1)[2]
    make(runs, "step1", epochs=2)
    assert [artifact.name for artifact in list_variants(runs, "tiny")] == [
        "step1", "step1", "responses/train", "step2/pseudo",
    ]  # fmt: skip
    (runs / "tiny" / "step2" / step2.digest / "manifest.json").write_text("{")
    assert [artifact.name for artifact in list_variants(runs, "tiny")] == ["step1", "step1", "responses/train"]
    assert list_variants(runs, "other") == []


def test_a_variant_by_digest_by_its_beginning_or_by_name(runs):
    old, new = make(runs, "step1", epochs=1), make(runs, "step1", epochs=2)
    variants = list_variants(runs, "tiny")
    assert find_variant(runs, "tiny", old.digest, variants).digest == old.digest
    assert find_variant(runs, "tiny", old.digest[:8], variants).digest == old.digest
    assert find_variant(runs, "tiny", "step1", variants).digest == new.digest  # the latest
    with pytest.raises(RisError, match=r"no run 'step2'; give a digest of `ris runs`, or one of: step1"):
        find_variant(runs, "tiny", "step2", variants)
    with pytest.raises(RisError, match="write more of the digest"):
        find_variant(runs, "tiny", "", variants)


def test_what_differs_is_followed_to_its_origin(runs):
    _, _, a = make_branch(runs, epochs=1, lr=0.5)
    _, _, b = make_branch(runs, epochs=2, lr=0.5)
    variants = list_variants(runs, "tiny")
    assert compare_identities(a, b, variants) == ["step1 epochs: 1 → 2"]
    assert compare_identities(a, a, variants) == []
    c = make(runs, "step2", flags={"labels": "true"}, seed=7, lr=3)
    assert compare_identities(a, c, list_variants(runs, "tiny")) == [
        "lr: 1 → 3",
        "flags.labels: pseudo → true",
        "seed: 0 → 7",
        f"reads responses/train: {a.manifest['inputs']['responses/train']} → absent",
    ]


def test_scores_are_paired_by_what_they_descend_from(runs):
    first_a, responses_a, step2_a = make_branch(runs, epochs=1)
    first_b, responses_b, step2_b = make_branch(runs, epochs=2)
    on_val = [make_scores(runs, step2, "step2", "val") for step2 in (step2_a, step2_b)]
    maps = [make_scores(runs, responses, "step1", "train") for responses in (responses_a, responses_b)]
    make_scores(runs, step2_a, "step2", "testA")  # the other has none
    make(runs, "scores", flags={"scored": "chance", "split": "val"})
    variants = list_variants(runs, "tiny")

    def pairs(a: Artifact, b: Artifact) -> set[tuple[str, str]]:
        return {(x.digest, y.digest) for x, y in pair_scores(a, b, variants)}

    of_step2 = (on_val[0].digest, on_val[1].digest)
    assert pairs(step2_a, step2_b) == {of_step2}
    assert pairs(first_a, first_b) == {of_step2, (maps[0].digest, maps[1].digest)}
    assert pairs(step2_a, step2_a) == set()
    assert pairs(on_val[0], on_val[1]) == {of_step2}
    with pytest.raises(RisError, match="of different splits, val and train"):
        pairs(on_val[0], maps[0])
