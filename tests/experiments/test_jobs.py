"""How the processes of an experiment share the cores."""

from __future__ import annotations

import sys

import pytest

from ris_pipeline.experiments import jobs

SHOW = "import os, sys; print(sys.argv[-1], os.environ['OMP_NUM_THREADS'])"


@pytest.mark.parametrize(("n_groups", "n_jobs", "share"), [(1, 2, 8), (3, 2, 4), (3, 1, 8), (3, 16, 2)])
def test_each_process_has_its_share_of_the_cores(n_groups, n_jobs, share, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "count_cores", lambda: 8)
    assert jobs.run_jobs([sys.executable, "-c", SHOW], n_groups, n_jobs, tmp_path / "logs" / "own") == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{k} {share}" for k in range(n_groups)]
    assert len(list((tmp_path / "logs").glob("own-*.log"))) == n_groups


def test_what_ends_with_an_error_is_counted(tmp_path):
    odd_fails = "import sys; sys.exit(int(sys.argv[-1]) % 2)"
    assert jobs.run_jobs([sys.executable, "-c", odd_fails], 3, 2, tmp_path / "own") == 1


def test_each_process_has_a_gpu_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    show = "import os, time; time.sleep(1); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert jobs.run_jobs([sys.executable, "-c", show], 2, 2, tmp_path / "own") == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["3", "5"]
