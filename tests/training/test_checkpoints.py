"""The file that a training goes on from: what is in it, what damage does, and when it is written."""

import errno
import io
import json
import os
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ris_pipeline.artifacts.layout import RESUME, TRAINING_LOG
from ris_pipeline.errors import RisError
from ris_pipeline.process import signals as stops
from ris_pipeline.training import checkpoints
from ris_pipeline.training.checkpoints import TrainingState, save_weights, seed_step


def state_in(folder, seed=0, **settings):
    torch.manual_seed(seed)
    network = nn.Linear(40, 30)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(5, 40)).sum().backward()
    optimizer.step()
    return TrainingState(folder, {"network": network, "optimizer": optimizer}, **settings)


def values_of(state):
    network, moments = state.parts["network"], state.parts["optimizer"].state_dict()["state"]
    return [*network.state_dict().values(), *(value for own in moments.values() for value in own.values())]


def test_all_parts_and_the_position_come_back(tmp_path):
    first, second = state_in(tmp_path), state_in(tmp_path, seed=1)
    first.step_done(loss=1.0)
    first.save()
    assert not torch.equal(values_of(second)[0], values_of(first)[0])
    assert second.load() == 1
    for found, expected in zip(values_of(second), values_of(first), strict=True):
        assert torch.equal(found, expected)


def test_what_was_logged_after_the_checkpoint_is_cut_off(tmp_path):
    state = state_in(tmp_path)
    for loss in (3.0, 2.0):
        state.step_done(loss=loss)
    state.save()
    state.step_done(loss=1.0)
    with (tmp_path / TRAINING_LOG).open("a") as file:
        file.write('{"step": 3, "lo')  # killed here
    again = state_in(tmp_path)
    assert again.load() == 2
    again.step_done(loss=1.0)
    lines = [json.loads(line) for line in (tmp_path / TRAINING_LOG).read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_without_a_checkpoint_the_log_begins_anew(tmp_path):
    state_in(tmp_path).step_done(loss=3.0)
    assert state_in(tmp_path).load() == 0
    assert (tmp_path / TRAINING_LOG).read_text() == ""


def test_one_process_writes(tmp_path):
    other = state_in(tmp_path, is_writer=False)
    other.step_done(loss=3.0)
    other.save()
    other.finish(tmp_path / "w.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_a_signal_leaves_a_checkpoint_after_the_step(tmp_path):
    state = state_in(tmp_path)
    state.step_done(loss=3.0)
    assert not (tmp_path / RESUME).exists()

    def step():
        os.kill(os.getpid(), signal.SIGTERM)
        state.step_done(loss=2.0)

    with pytest.raises(stops.Stopped) as stop, stops.watch_signals(), stops.deferred():
        step()
    assert stop.value.number == signal.SIGTERM
    assert state_in(tmp_path).load() == 2


def test_a_flipped_byte_is_noticed_or_does_no_harm(tmp_path):
    state = state_in(tmp_path)
    state.save()
    whole = (tmp_path / RESUME).read_bytes()
    rng = np.random.default_rng(0)
    n_noticed = 0
    for at in rng.choice(len(whole), 50, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        (tmp_path / RESUME).write_bytes(damaged)
        other = state_in(tmp_path, seed=1)
        try:
            other.load()
        except RisError as error:
            assert "start over with --force" in str(error)  # noqa: PT017
            n_noticed += 1
        else:  # padding
            assert all(torch.equal(*pair) for pair in zip(values_of(other), values_of(state), strict=True))
    assert n_noticed > 25  # weights and moments are most of the file


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_torn_checkpoint_is_an_error(size, tmp_path):
    state_in(tmp_path).save()
    os.truncate(tmp_path / RESUME, size)
    with pytest.raises(RisError, match=r"resume\.pt: damaged checkpoint; start over with --force"):
        state_in(tmp_path).load()


def test_a_checkpoint_of_another_network_is_an_error(tmp_path):
    state_in(tmp_path).save()
    with pytest.raises(RisError, match="a checkpoint of other networks"):
        TrainingState(tmp_path, {"network": nn.Linear(3, 2)}).load()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    state = state_in(tmp_path)
    state.step_done(loss=3.0)
    state.save()

    def run_out(*arguments):
        arguments[1].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", run_out)
    state.step_done(loss=2.0)
    with pytest.raises(OSError, match="No space"):
        state.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [TRAINING_LOG, RESUME]
    assert state_in(tmp_path).load() == 1


def test_weights_are_whole_or_absent(tmp_path, monkeypatch):
    weights = {"a": torch.arange(6.0).view(2, 3).T}
    save_weights(tmp_path / "w.safetensors", weights)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], weights["a"])
    (tmp_path / "w").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "w").stat().st_mode  # as any other file
    (tmp_path / "w").unlink()

    def run_out(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", run_out)
    with pytest.raises(OSError, match="No space"):
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], weights["a"])


def test_random_numbers_are_of_seed_step_and_process():
    def draw(*key):
        seed_step(*key)
        return torch.rand(3).tolist()

    assert draw(0, 5, 1) == draw(0, 5, 1)
    assert len({tuple(draw(*key)) for key in ((0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 0))}) == 4


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch, n):
    """torch's archive has an error of its own for being cut short; that of the disk is what a user can mend."""
    state = state_in(tmp_path)
    state.save()
    whole = (tmp_path / RESUME).read_bytes()

    class Full(io.BytesIO):
        n_writes = 0

        def write(self, data):
            self.n_writes += 1
            if self.n_writes >= n:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoints, "replacing", lambda path: nullcontext(Full()))
    with pytest.raises(OSError, match="No space left"):
        state.save()
    assert (tmp_path / RESUME).read_bytes() == whole
