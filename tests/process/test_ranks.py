"""What processes of torchrun agree on."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from ris_pipeline.process.ranks import is_same_everywhere


def ask(rank: int, store: str, value: int, answers: "multiprocessing.Queue[tuple[int, bool]]") -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    answers.put((rank, is_same_everywhere(value)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("values", "expected"), [((7, 7), True), ((7, 0), False), ((0, 7), False)])
def test_two_processes_compare_a_number(values: tuple[int, int], expected: bool, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [
        context.Process(target=ask, args=(rank, os.fspath(tmp_path / "store"), value, answers))
        for rank, value in enumerate(values)
    ]
    for child in children:
        child.start()
    found = dict(answers.get(timeout=60) for _ in children)
    for child in children:
        child.join(60)
    assert found == {0: expected, 1: expected}


def test_one_process_agrees_with_itself() -> None:
    assert is_same_everywhere(3)
