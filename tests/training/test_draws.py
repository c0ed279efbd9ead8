from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.datasets import Dataset, Expression, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.process.ranks import Ranks
from ris_pipeline.training.draws import Plan
from tiny import draw_epoch


def dataset_of(*n_refs, n_sentences=3):
    """A data set with n_refs[i] refs on image i; sentence "i.r.k" is the k-th of ref r on image i."""
    refs = []
    for i, n in enumerate(n_refs):
        for r in range(n):
            expressions = tuple(Expression(n_sentences * len(refs) + k, f"{i}.{r}.{k}") for k in range(n_sentences))
            refs.append(Ref(len(refs), i, "train", expressions))
    images = {i: Image(i, Path(f"{i}.jpg"), (8, 8)) for i in range(len(n_refs))}
    return Dataset("tiny", "train", images, tuple(refs))


def plan_of(dataset, batch_size=4, refs_per_image=1, n_negatives=3, seed=0, **ranks):
    return Plan(dataset, batch_size, refs_per_image, n_negatives, seed, **ranks)


def refs_of(batches):
    return [draw.ref for batch in batches for draw in batch]


@pytest.mark.parametrize("refs_per_image", [1, 2, 3])
def test_an_epoch_visits_each_ref_once(refs_per_image):
    plan = plan_of(dataset_of(3, 3, 3, 3), refs_per_image=refs_per_image)
    assert plan.n_steps == 3
    batches = draw_epoch(plan, 0)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sorted(refs_of(batches)) == list(range(12))


def test_what_is_left_after_the_last_whole_batch_waits():
    plan = plan_of(dataset_of(3, 3, 3, 2))
    assert plan.n_steps == 2
    visited = [refs_of(draw_epoch(plan, epoch)) for epoch in range(20)]
    assert all(len(set(refs)) == 8 for refs in visited)
    assert set().union(*visited) == set(range(11))  # not always the same ones wait


def test_fewer_refs_than_a_batch_make_one_small_batch():
    plan = plan_of(dataset_of(2, 1), batch_size=8)
    assert plan.n_steps == 1
    assert sorted(refs_of(draw_epoch(plan, 5))) == [0, 1, 2]


def test_a_draw_is_a_function_of_seed_and_epoch():
    dataset = dataset_of(3, 3, 3, 3)
    plan = plan_of(dataset)
    third = draw_epoch(plan, 2)
    draw_epoch(plan, 0)
    assert draw_epoch(plan, 2) == third  # whatever was drawn before
    assert draw_epoch(plan_of(dataset), 2) == third
    assert draw_epoch(plan, 3) != third
    assert draw_epoch(plan_of(dataset, seed=1), 2) != third


def test_half_of_the_images_of_an_epoch_are_mirrored_for_all_their_refs():
    dataset = dataset_of(*[2] * 100)
    plan = plan_of(dataset, refs_per_image=2, n_negatives=0, mirror=True)
    mirrored = []
    for epoch in range(4):
        of_image = {}
        for draw in [draw for batch in draw_epoch(plan, epoch) for draw in batch]:
            of_image.setdefault(dataset.refs[draw.ref].image_id, set()).add(draw.is_mirrored)
        assert all(len(ways) == 1 for ways in of_image.values())
        mirrored.append([min(of_image[i]) for i in range(100)])
        assert 30 < sum(mirrored[-1]) < 70
    assert len(set(map(tuple, mirrored))) == 4  # not the same ones in each epoch
    unmirrored = draw_epoch(plan_of(dataset, refs_per_image=2, n_negatives=0), 0)
    assert [[replace(d, is_mirrored=False) for d in batch] for batch in draw_epoch(plan, 0)] == unmirrored


def test_sentences_are_the_refs_own_and_all_come_up():
    dataset = dataset_of(2, 2)
    plan = plan_of(dataset)
    drawn = {ref: Counter() for ref in range(4)}
    for epoch in range(60):
        for draw in draw_epoch(plan, epoch)[0]:
            drawn[draw.ref][draw.sentence] += 1
    for ref in dataset.refs:
        own = {expression.sentence for expression in ref.expressions}
        assert set(drawn[ref.ref_id]) == own
        assert min(drawn[ref.ref_id].values()) > 6  # 20 are expected of each


@pytest.mark.parametrize("refs_per_image", [1, 2])
def test_negatives_are_of_other_refs_of_the_image(refs_per_image):
    dataset = dataset_of(3, 2, 3)
    met = set()
    for epoch in range(30):
        for batch in draw_epoch(plan_of(dataset, refs_per_image=refs_per_image), epoch):
            for draw in batch:
                image, ref, _ = draw.sentence.split(".")
                assert len(draw.negatives) == 3
                for negative in draw.negatives:
                    assert negative.split(".")[0] == image
                    assert negative.split(".")[1] != ref
                    met.add((draw.ref, negative))
    # every sentence of every sibling is a negative some time: 3 refs → 6 sentences, 2 refs → 3
    assert len(met) == 3 * 6 + 2 * 3 + 3 * 6


def test_a_ref_alone_in_its_image_has_strangers_as_negatives():
    plan = plan_of(dataset_of(1, 1, 1, 1, 1))
    for epoch in range(20):
        for draw in draw_epoch(plan, epoch)[0]:
            assert len(draw.negatives) == 3
            assert all(negative.split(".")[0] != draw.sentence.split(".")[0] for negative in draw.negatives)


def test_one_ref_has_no_negatives():
    assert draw_epoch(plan_of(dataset_of(1)), 0)[0][0].negatives == ()


def test_refs_of_an_image_stay_together():
    dataset = dataset_of(3, 3, 3, 3)
    for epoch in range(5):
        order = refs_of(draw_epoch(plan_of(dataset, batch_size=6, refs_per_image=3), epoch))
        images = [dataset.refs[ref].image_id for ref in order]
        assert sum(a != b for a, b in pairwise(images)) == 3  # four runs of one image each


def test_no_more_refs_of_an_image_stay_together_than_asked():
    dataset = dataset_of(*[4] * 30)
    plan = plan_of(dataset, batch_size=2, refs_per_image=2)
    batches = draw_epoch(plan, 0)
    assert all(len({dataset.refs[draw.ref].image_id for draw in batch}) == 1 for batch in batches)
    assert len({draw.ref for draw in batches[0]}) == 2
    images = [dataset.refs[batch[0].ref].image_id for batch in batches]
    assert sum(a == b for a, b in pairwise(images)) < 10  # the two pairs of an image are apart


def test_refs_alone_are_spread():
    dataset = dataset_of(*[4] * 30)
    images = [dataset.refs[ref].image_id for ref in refs_of(draw_epoch(plan_of(dataset), 0))]
    assert sum(a == b for a, b in pairwise(images)) < 12  # 3 by chance


def ranks_of(n_ranks):
    return [Ranks(rank, n_ranks, rank) for rank in range(n_ranks)]


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize("refs_per_image", [1, 2])
def test_ranks_share_an_epoch(refs_per_image, n_ranks):
    """What one process draws, each image in the part of one of the ranks."""
    dataset = dataset_of(2, 2, 2, 2, 2, 2, 2)
    whole = draw_epoch(plan_of(dataset, batch_size=7, refs_per_image=refs_per_image), 1)
    shares = [
        draw_epoch(plan_of(dataset, batch_size=7, refs_per_image=refs_per_image, ranks=ranks), 1)
        for ranks in ranks_of(n_ranks)
    ]
    assert len(whole) == 2
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(parts)
        assert sorted(refs_of(parts)) == sorted(refs_of([batch]))
        images = [{dataset.refs[draw.ref].image_id for draw in part} for part in parts]
        assert sum(map(len, images)) == len(set().union(*images))


@pytest.mark.parametrize("n_refs", [2, 3, 5, 7])
def test_ranks_share_a_small_data_set(n_refs):
    dataset = dataset_of(*[1] * n_refs)
    shares = [refs_of(draw_epoch(plan_of(dataset, batch_size=8, ranks=ranks), 0)) for ranks in ranks_of(2)]
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == list(range(n_refs))


def test_one_image_for_two_ranks_is_in_both_parts():
    dataset = dataset_of(3)
    shares = [refs_of(draw_epoch(plan_of(dataset, batch_size=3, ranks=ranks), 0)) for ranks in ranks_of(2)]
    assert [len(share) for share in shares] == [1, 2]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2]


def test_fewer_refs_than_ranks_are_refused():
    for ranks in ranks_of(2):
        with pytest.raises(RisError, match=r"^a batch of 1 cannot be shared by 2 processes: start fewer, or raise"):
            draw_epoch(plan_of(dataset_of(1), ranks=ranks), 0)


def replace_sentences(dataset, *sentences):
    """The data set with one sentence a ref."""
    refs = tuple(replace(ref, expressions=(Expression(ref.ref_id, text),))
                 for ref, text in zip(dataset.refs, sentences, strict=True))  # fmt: skip
    return replace(dataset, refs=refs)


@pytest.mark.parametrize(
    ("n_refs", "sentences"),
    [
        ((2, 1), ("man", "man", "woman")),  # said of two refs of one image
        ((1, 1, 1), ("man", "man", "woman")),  # a stranger's
    ],
)
def test_the_own_sentence_is_never_a_negative(n_refs, sentences):
    plan = plan_of(replace_sentences(dataset_of(*n_refs), *sentences))
    draws = [draw for epoch in range(40) for batch in draw_epoch(plan, epoch) for draw in batch if draw.ref < 2]
    assert all(draw.sentence == "man" and set(draw.negatives) <= {"woman"} for draw in draws)
    assert any(draw.negatives for draw in draws)


def test_where_all_say_the_same_there_are_no_negatives():
    plan = plan_of(replace_sentences(dataset_of(2), "man", "man"))
    assert [draw.negatives for batch in draw_epoch(plan, 0) for draw in batch] == [(), ()]


@given(
    n_refs=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    batch_size=st.integers(1, 6),
    n_ranks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_batches_of_distinct_images(n_refs, batch_size, n_ranks, seed):
    dataset = dataset_of(*n_refs)
    alone = plan_of(dataset, batch_size, seed=seed, distinct_images=True)
    n_steps = alone.n_steps
    assert n_steps == max(sum(n_refs) // batch_size, 1)
    batches = draw_epoch(alone, 3)
    assert batches == draw_epoch(alone, 3)  # whatever was drawn before
    if min(map(len, batches)) >= n_ranks:
        shares = [draw_epoch(replace(alone, ranks=ranks), 3) for ranks in ranks_of(n_ranks)]
        assert [[draw for part in parts for draw in part] for parts in zip(*shares, strict=True)] == batches
    assert len(batches) == n_steps
    n_placed = min(sum(min(n, n_steps) for n in n_refs), n_steps * batch_size)
    for batch in batches:
        refs = {draw.ref for draw in batch}
        images = [dataset.refs[ref].image_id for ref in refs]
        assert len(set(images)) == len(images)
        assert n_placed // n_steps <= len(refs) <= -(-n_placed // n_steps)
        assert len(batch) == len(refs) <= batch_size
    visited = [ref for batch in batches for ref in {draw.ref for draw in batch}]
    assert len(visited) == len(set(visited)) == n_placed


def test_refs_that_find_no_batch_of_distinct_images_have_their_turn_in_other_epochs():
    plan = plan_of(dataset_of(9, 1, 1, 1), distinct_images=True)  # three batches of an image with nine refs
    epochs = [refs_of(draw_epoch(plan, epoch)) for epoch in range(30)]
    assert all(sum(ref < 9 for ref in refs) == 3 for refs in epochs)
    assert set().union(*epochs) == set(range(12))


def test_sentences_about_nothing_are_counter_examples_and_never_drawn():
    dataset = dataset_of(1, 1)
    absent = Ref(9, 0, "train", (Expression(90, "nothing there"),), ())
    dataset = replace(dataset, absent=(absent,))
    draws = [
        draw for epoch in range(20) for batch in draw_epoch(plan_of(dataset, batch_size=2), epoch) for draw in batch
    ]
    assert {draw.ref for draw in draws} == {0, 1}
    # Of image 0 they are the only other sentences; image 1 has none of its own and takes those of image 0's ref.
    assert {text for draw in draws if draw.ref == 0 for text in draw.negatives} == {"nothing there"}
    assert "nothing there" not in {text for draw in draws if draw.ref == 1 for text in draw.negatives}
