"""Each fault that the diagnosis is there for is made, and has to be found."""

import dataclasses
import errno
import json
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calls import Options, call, context_of
from ris_pipeline import doctor
from ris_pipeline.errors import RisError
from ris_pipeline.process.failures import explain_failure
from stages import doctor as command


@pytest.fixture
def healthy(tiny: Options, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options for which nothing is wrong: the card's networks are small local ones."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = Path(tiny.dataset).read_text()
    lines = f'clip = "{tiny_clip}"\nclip_weights = "none"\n'
    aux = f'aux_clip = "{tiny_clip}"\naux_weights = "none"\n'
    labels = f'[config.pseudolabels]\nirn_backbone = "{tiny_clip}"\nirn_weights = "none"\n'
    Path(tiny.dataset).write_text(f"{text}{lines}{aux}[config.step2]\n{lines}{labels}")
    return dataclasses.replace(tiny, device="cpu")


def find(options: Options, name: str) -> list[tuple[str, str]]:
    """State, and what is found and to be done, of the findings of one check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name]})
        findings = doctor.diagnose(context_of(options))
    return [(finding.state, f"{finding.found} → {finding.remedy}") for finding in findings]


def test_a_healthy_installation(healthy, tiny_clip, capsys):
    call(command.run, dataclasses.replace(healthy, json=True, set=["epochs=3"]))
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert list(findings) == list(doctor.CHECKS)
    assert [name for name, finding in findings.items() if finding["state"] == "broken"] == []
    assert findings["weights"]["found"] == f"{tiny_clip} of step1, step2, pseudolabels: activation GELU"
    assert findings["data"]["found"] == "tiny: sentences as its card says: train 2, val 1"
    assert findings["device"]["found"].startswith("cpu, ")


def test_what_is_broken_ends_with_status_1_after_all_findings(healthy, capsys):
    with pytest.raises(RisError, match="broken: device, speed; the remedy is below each"):
        call(command.run, dataclasses.replace(healthy, device="gpu"))
    lines = capsys.readouterr().out.splitlines()
    assert "broken   device         --device gpu: not usable here; try --device cpu" in lines
    assert lines[-1].startswith(("ok       writing", "warning  writing"))


def test_torchvision_built_for_another_torch(healthy, monkeypatch):
    def nms(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    ((state, text),) = find(healthy, "torchvision")
    assert state == "broken"
    assert "operator torchvision::nms does not exist → " in text
    assert "torch and torchvision in one command" in text


def test_packages_that_are_missing_or_too_old(healthy, monkeypatch):
    needed = ["torch>=999", "nonesuch-package>=1", "numpy>=1", 'pytest>=999; extra == "dev"']
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    ((state, text),) = find(healthy, "packages")
    assert state == "broken"
    assert text.startswith(f"torch {version('torch')} where >=999 is needed; nonesuch-package is not installed → ")


def test_weights_that_are_not_here_are_not_downloaded(tiny, monkeypatch):
    def download(*arguments, **options):
        raise FileNotFoundError("offline")

    monkeypatch.setattr("open_clip.download_pretrained", download)
    monkeypatch.setattr("timm.create_model", download)
    findings = find(tiny, "weights")  # the paper's networks
    assert [state for state, _ in findings] == ["warning"] * 3
    assert findings[0][1].startswith("RN50-quickgelu (openai) of step1, step2: not on this machine yet → ")
    assert findings[2][1].startswith("resnet50 (tv_in1k) of pseudolabels: not on this machine yet → ")


def test_a_file_of_weights_that_is_not_there(healthy, tmp_path):
    (tmp_path / "c.toml").write_text('[step1]\nclip_weights = "nowhere.pt"\n')
    findings = find(dataclasses.replace(healthy, config=tmp_path / "c.toml"), "weights")
    ((state, text),) = [finding for finding in findings if finding[0] != "ok"]
    assert state == "broken"
    assert "nowhere.pt: no such file" in text


@pytest.mark.parametrize(("of_openai", "state"), [(True, "ok"), (False, "warning")])
def test_quickgelu_that_only_the_name_asks_for(healthy, tiny_clip, tmp_path, of_openai, state):
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "open_clip_config.json").write_text(json.dumps(config))
    tensors = load_file(tiny_clip / "model.safetensors")
    if of_openai:  # their files hold sizes beside the weights
        tensors["context_length"] = torch.tensor(77)
    save_file(tensors, tmp_path / "own.safetensors")
    text = f'[step1]\nclip = "{tmp_path}/quick"\nclip_weights = "{tmp_path}/own.safetensors"\n'
    (tmp_path / "c.toml").write_text(text)
    first = find(dataclasses.replace(healthy, config=tmp_path / "c.toml"), "weights")[0]
    assert first[0] == state
    assert ("by the name alone" in first[1]) == (not of_openai)
    assert "activation QuickGELU" in first[1]


def test_data(healthy, tiny):
    card = Path(healthy.dataset)
    card.write_text(card.read_text().replace("train = 2", "train = 3"))
    assert find(healthy, "data") == [
        ("broken", "tiny train: 2 sentences where the card expects 3 → `ris data check` lists all")
    ]
    (healthy.data_root / "tiny" / "images" / "a.png").unlink()
    assert find(healthy, "data")[0][1].startswith("tiny, 2 images: 1 missing files")
    (healthy.data_root / "tiny" / "pairs.jsonl").unlink()
    ((state, text),) = find(healthy, "data")
    assert (state, "pairs.jsonl in place" in text) == ("warning", True)


def test_disk_and_writing(healthy, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**9))
    ((state, text),) = find(healthy, "disk")
    assert (state, text.partition(" at ")[0]) == ("warning", "1.0 GB left")
    in_a_file = dataclasses.replace(healthy, runs=Path(healthy.dataset) / "runs")
    ((state, text),) = find(in_a_file, "writing")
    assert (state, "no files, links, locks or fsync there (Not a directory)" in text) == ("broken", True)
    assert find(healthy, "writing")[0][0] == "ok"
    assert not healthy.runs.exists()


def test_speed(healthy, monkeypatch):
    ((_, text),) = find(healthy, "speed")
    assert float(text.removeprefix("3×3 convolution: ").split()[0].replace(",", "")) > 0
    monkeypatch.setattr(doctor, "SLOW", float("inf"))
    assert find(healthy, "speed")[0][0] == "warning"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_driver_without_a_torch_for_it(healthy, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    ((state, text),) = find(dataclasses.replace(healthy, device="auto"), "device")
    assert (state, text.startswith("cpu, though an NVIDIA driver is here; torch is ")) == ("warning", True)


DiskUsage = namedtuple("DiskUsage", "total used free")


def test_a_small_shared_memory(healthy, monkeypatch):
    """Docker's 64 MB: two readers of 48 pictures of 320 pixels need five batches of 59 MB."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(2**26, 0, 2**26))
    ((state, text),) = find(healthy, "shared memory")
    assert state == "warning"
    assert "67 MB free in /dev/shm; 2 readers of step1 take 295 → docker: --shm-size=1g" in text
    assert find(dataclasses.replace(healthy, workers=0), "shared memory")[0][0] == "ok"


def test_opencv_without_libgl(healthy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # its import fails
    ((state, _),) = find(healthy, "opencv")
    assert state == "broken"
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    line = explain_failure(error)
    assert "apt-get install libgl1" in line
    assert "pip install opencv-python-headless" in line
    assert explain_failure(ImportError("no module named x")) is None


def test_a_disk_that_cannot_sync(healthy, monkeypatch):
    def refuse(path):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(doctor, "fsync_path", refuse)
    ((state, text),) = find(healthy, "writing")
    assert state == "broken"
    assert "fsync there (Invalid argument)" in text
