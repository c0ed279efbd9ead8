import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ris_pipeline.artifacts.files import render_json
from ris_pipeline.artifacts.find import explain, find, find_latest, list_latest
from ris_pipeline.artifacts.identity import Request, differences, digest, label_of, with_checksum
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.artifacts.publish import point_latest, publish, remove_leftovers
from ris_pipeline.artifacts.verify import find_damage
from ris_pipeline.errors import MadeMeanwhileError, RisError


def request_in(runs: Path, stage: str = "step1", **changes) -> Request:
    values = {"configuration": {"lr": 1e-4}, "inputs": {"data": "d0"}} | changes
    return Request(runs=runs, dataset="shapes", stage=stage, **values)


def make(request: Request, text: str = "hello", *, force: bool = False) -> None:
    with publish(request, force=force) as work:
        (work.path / "deep").mkdir(exist_ok=True)
        (work.path / "deep" / "result.txt").write_text(text)
        work.counts["sentences"] = 3


def break_off(request: Request) -> None:
    with publish(request) as work:
        (work.path / "half.txt").write_text("half")
        (work.path / "missing.txt").read_text()


def test_digest_is_that_of_canonical_json():
    # printf '{"a":[1,2],"b":null}' | sha256sum
    assert digest({"b": None, "a": (1, 2)}) == "f25109c41113"
    with pytest.raises(ValueError, match="Out of range"):
        digest(float("nan"))


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ({}, ""),
        ({"split": "val"}, "val"),
        ({"refine": True}, "refine"),
        ({"refine": False}, "no-refine"),
        ({"stage": "step1", "split": "val"}, "val-step1"),  # by their names: an order of typing makes no other artifact
        ({"split": "val", "stage": "step1"}, "val-step1"),
    ],
)
def test_label(flags, label):
    assert label_of(flags) == label


def test_every_part_of_the_identity_changes_the_folder(tmp_path):
    variants = [
        request_in(tmp_path),
        request_in(tmp_path, configuration={"lr": 2e-4}),
        request_in(tmp_path, inputs={"data": "d1"}),
        request_in(tmp_path, flags={"split": "val"}),
        request_in(tmp_path, seed=1),
        request_in(tmp_path, precision="bf16"),
    ]
    assert len({variant.path for variant in variants}) == len(variants)
    assert request_in(tmp_path).path == variants[0].path


def test_what_cannot_change_the_result_is_not_in_the_identity(tmp_path):
    dump = request_in(tmp_path, "responses", configuration={"prms": True, "batch_size": 48})
    assert request_in(tmp_path, "responses", configuration={"prms": True, "batch_size": 1}).path == dump.path
    assert request_in(tmp_path, "responses", configuration={"prms": True}, precision="bf16").path == dump.path
    assert request_in(tmp_path, "responses", configuration={"prms": False}).path != dump.path
    alone = request_in(tmp_path)
    assert request_in(tmp_path, chosen={"lr": 1e-4}).path == alone.path


def test_a_published_artifact_is_found_with_its_manifest(tmp_path):
    request = request_in(tmp_path)
    assert find(request) is None
    make(request)
    artifact = find(request)
    assert artifact is not None
    assert (artifact.path / "deep" / "result.txt").read_text() == "hello"
    assert artifact.digest == request.path.name
    assert artifact.name == "step1"
    manifest = artifact.manifest
    assert manifest["configuration"] == {"lr": 1e-4}
    assert manifest["inputs"] == {"data": "d0"}
    assert manifest["counts"] == {"sentences": 3}
    assert manifest["files"]["count"] == 1
    assert manifest["files"]["bytes"] == 5
    assert manifest["timings"]["total"] >= 0
    assert not manifest["resumed"]
    assert {"seed", "code_version", "host", "libraries", "started", "finished"} <= manifest.keys()
    assert sorted(path.name for path in request.path.parent.iterdir()) == [request.path.name, "latest"]


def test_a_broken_run_leaves_no_artifact_and_is_resumed(tmp_path):
    request = request_in(tmp_path)
    with pytest.raises(FileNotFoundError):
        break_off(request)
    assert find(request) is None
    assert find_latest(tmp_path, "shapes", "step1") is None
    assert explain(request).startswith("an earlier run broke off")
    with publish(request) as work:
        assert work.resumed
        assert (work.path / "half.txt").read_text() == "half"
    artifact = find(request)
    assert artifact is not None
    assert artifact.manifest["resumed"]


def test_force_starts_anew_and_replaces(tmp_path):
    request = request_in(tmp_path)
    make(request, "old")
    request.partial.mkdir()
    (request.partial / "left-over.txt").touch()
    make(request, "new", force=True)
    assert (request.path / "deep" / "result.txt").read_text() == "new"
    assert not (request.path / "left-over.txt").exists()
    assert sorted(path.name for path in request.path.parent.iterdir()) == [request.path.name, "latest"]


def test_a_run_killed_after_its_manifest_is_finished_by_the_next(tmp_path):
    request = request_in(tmp_path)
    request.partial.mkdir(parents=True)
    (request.partial / "manifest.json").write_text("{")
    make(request)
    assert find(request) is not None


def test_latest_follows_what_was_asked_for_last(tmp_path):
    slow, fast = request_in(tmp_path), request_in(tmp_path, configuration={"lr": 1.0})
    make(slow)
    make(fast)
    assert find_latest(tmp_path, "shapes", "step1").path == fast.path.resolve()
    artifact = find(slow)
    assert artifact is not None
    point_latest(artifact)
    assert find_latest(tmp_path, "shapes", "step1").path == slow.path.resolve()
    assert (slow.path.parent / "latest").readlink() == Path(slow.path.name)


def test_variants_have_their_own_latest(tmp_path):
    val, train = (request_in(tmp_path, "responses", flags={"split": name}) for name in ("val", "train"))
    make(val)
    make(train)
    assert find_latest(tmp_path, "shapes", "responses", split="val").path == val.path.resolve()
    # What asks for a stage without flags must never get a variant of it, such as another method's network.
    assert find_latest(tmp_path, "shapes", "responses") is None
    assert not (val.path.parent / "latest").exists()
    assert list(list_latest(tmp_path, "shapes", "responses")) == ["train", "val"]


def test_a_lost_latest_is_found_again_from_the_manifests(tmp_path):
    first, second = (request_in(tmp_path, "responses", flags={"split": "val"}, seed=seed) for seed in (0, 1))
    make(request_in(tmp_path, "responses", flags={"split": "train"}))
    make(first)
    make(second)
    set_finished(first, "2026-02-01T00:00:00+00:00")
    set_finished(second, "2026-01-01T00:00:00+00:00")
    for link in first.path.parent.glob("latest*"):
        link.unlink()
    assert find_latest(tmp_path, "shapes", "responses", split="val").path == first.path.resolve()
    assert sorted(list_latest(tmp_path, "shapes", "responses")) == ["train", "val"]
    assert find_latest(tmp_path, "shapes", "responses", split="test") is None


def set_finished(request: Request, time: str) -> None:
    path = request.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(render_json(with_checksum(manifest | {"finished": time})))


def test_a_copy_without_links_is_read_and_written_to(tmp_path):
    """As cp -rL and scp -r make it: `latest` is a folder, a second copy of the artifact."""
    request = request_in(tmp_path / "runs")
    make(request)
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")  # follows links
    copy = request_in(tmp_path / "copy")
    assert (copy.path.parent / "latest").is_dir()
    assert not (copy.path.parent / "latest").is_symlink()
    assert find_latest(tmp_path / "copy", "shapes", "step1").digest == request.path.name
    make(request_in(tmp_path / "copy", seed=1))
    assert (copy.path.parent / "latest").is_symlink()
    assert find(copy) is not None


def test_a_folder_that_is_called_latest_alone_gets_its_name(tmp_path):
    request = request_in(tmp_path)
    make(request)
    (request.path.parent / "latest").unlink()
    request.path.rename(request.path.parent / "latest")
    make(request_in(tmp_path, seed=1))
    assert find(request) is not None


def test_the_reason_to_run_names_each_difference(tmp_path):
    assert explain(request_in(tmp_path)) == "nothing made yet"
    make(request_in(tmp_path))
    changed = request_in(tmp_path, configuration={"lr": 2e-4, "epochs": 3}, inputs={"data": "d1"}, seed=5)
    assert explain(changed).split("; ") == [
        "configuration.lr: 0.0001 → 0.0002",
        "configuration.epochs: absent → 3",
        "inputs.data: d0 → d1",
        "seed: 0 → 5",
    ]


def test_differences_name_what_was_dropped():
    assert differences({"a": {"b": 1}, "ignored": 2}, {"a": {}}) == ["a.b: 1 → absent"]


def test_a_damaged_manifest_is_not_read(tmp_path):
    request = request_in(tmp_path)
    make(request)
    manifest = request.path / "manifest.json"
    whole = manifest.read_text()
    # Still JSON, still a manifest, and another result for whoever goes by it.
    for damaged in ("{", whole.replace('"lr": 0.0001', '"lr": 0.0002'), whole.replace("  ", "\t", 1)):
        manifest.write_text(damaged)
        with pytest.raises(RisError, match=r"manifest\.json: damaged manifest .*`ris status --repair`"):
            find(request)
        assert list_latest(tmp_path, "shapes", "step1") == {}


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path):
    request = request_in(tmp_path)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with publish(request):
        with pytest.raises(RisError, match=holder), publish(request):
            pass
        # Another artifact of the stage is free.
        make(request_in(tmp_path, seed=1))
    assert find(request) is not None


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / "a.lock"
    code = f"""
from pathlib import Path
from ris_pipeline.artifacts.locks import hold
with hold(Path({str(path)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RisError, match=f"process {process.pid} on"), hold(path):
            pass
        process.send_signal(signal.SIGKILL)
    assert path.exists()
    with hold(path):
        assert path.read_text().startswith(f"process {os.getpid()} on")
    assert not path.exists()


def test_the_lock_of_a_killed_process_is_not_kept_by_its_children(tmp_path):
    path = tmp_path / "a.lock"
    code = f"""
import os, time
from pathlib import Path
from ris_pipeline.artifacts.locks import hold
with hold(Path({str(path)!r})):
    if os.fork() == 0:
        print("held", flush=True)
        input()  # goes on when its parent is dead
        os._exit(0)
    time.sleep(100)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold(path):
            pass


def test_two_processes_on_one_artifact(tmp_path):
    """The second is refused by name; the artifact is the first one's, whole."""
    request = request_in(tmp_path)
    code = f"""
from pathlib import Path
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
with publish(Request(Path({str(tmp_path)!r}), "shapes", "step1", {{"lr": 1e-4}}, {{"data": "d0"}})) as work:
    print("held", flush=True)
    (work.path / "result.txt").write_text(input())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RisError, match=f"being written by process {process.pid} on {socket.gethostname()}"):
            make(request)
        process.communicate("the first one's\n")
    artifact = find(request)
    assert artifact is not None
    assert (artifact.path / "result.txt").read_text() == "the first one's"
    assert sorted(path.name for path in request.path.parent.iterdir()) == [request.path.name, "latest"]


def test_what_was_finished_before_the_lock_was_taken_is_not_made_again(tmp_path):
    request = request_in(tmp_path)
    make(request, "the first one's")
    make(request_in(tmp_path, seed=1))  # `latest` now
    with pytest.raises(MadeMeanwhileError, match=f"another process has just made {request.path.name}"):
        make(request, "the second one's")
    assert (request.path / "deep" / "result.txt").read_text() == "the first one's"
    assert find_latest(tmp_path, "shapes", "step1").path.resolve() == request.path
    # A run with --force that broke off beside it is finished.
    request.partial.mkdir()
    make(request, "the third one's")
    assert (request.path / "deep" / "result.txt").read_text() == "the third one's"


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    request, other = request_in(tmp_path), request_in(tmp_path, seed=1)
    make(request)
    folder = request.path.parent
    # Killed after the old artifact was moved away: it comes back. What it had made so far can be resumed.
    request.path.rename(folder / f"{request.path.name}.old")
    request.partial.mkdir()
    for name in (f"{request.path.name}.lock", ".latest.4711", ".latest-val.4711"):
        (folder / name).touch()
    with hold(folder / f"{other.path.name}.lock"):
        remove_leftovers(request)
        names = [request.path.name, f"{request.path.name}.partial", f"{other.path.name}.lock", "latest"]
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert find(request) is not None


def test_a_checkpoint_goes_when_the_artifact_is_there(tmp_path):
    request = request_in(tmp_path)
    with publish(request) as work:
        (work.path / "resume.pt").touch()
    assert not (request.path / "resume.pt").exists()
    assert find_damage(request.path) == []

    (request.path / "resume.pt").touch()  # killed in between
    assert find_damage(request.path) == []
    request.partial.mkdir()
    (request.partial / "resume.pt").touch()
    remove_leftovers(request)
    assert not (request.path / "resume.pt").exists()
    assert (request.partial / "resume.pt").exists()


def test_manifest_is_plain_json_with_letters_as_they_are(tmp_path):
    request = request_in(tmp_path, configuration={"sentence": "der größte Würfel"})
    make(request)
    text = (request.path / "manifest.json").read_text(encoding="utf-8")
    assert "größte" in text
    assert json.loads(text)["configuration"] == {"sentence": "der größte Würfel"}


def test_a_right_link_is_left_alone(tmp_path):
    request = request_in(tmp_path)
    make(request)
    artifact = find(request)
    assert artifact is not None
    before = (request.path.parent / "latest").lstat()
    point_latest(artifact)
    assert (request.path.parent / "latest").lstat() == before


def test_a_file_where_the_runs_belong_is_named(tmp_path):
    (tmp_path / "runs").touch()
    request = request_in(tmp_path / "runs")
    assert find(request) is None
    with pytest.raises(RisError, match=r"runs/shapes/step1: cannot write there: Not a directory"):
        make(request)
