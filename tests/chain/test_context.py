"""The context of a stage: its configuration, data, inputs, and whether it is due."""

import dataclasses
import errno
import json
from pathlib import Path

import PIL.Image
import pytest

from calls import Options, context_of
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import PseudolabelConfig, ResponsesConfig, Step1Config
from ris_pipeline.errors import RisError
from ris_pipeline.methods import find_method
from stages.console import show
from stages.context import Output


def run_step1(options: Options) -> None:
    """The smallest stage there can be."""
    context = context_of(options)
    request = context.request("step1", context.resolve(Step1Config, "step1"))
    if context.is_due(request):
        with publish(request, force=options.force) as work:
            (work.path / "weights").touch()
    show(options.group(Output), find(request))


def test_a_stage_runs_once_and_says_why(tiny, capsys):
    run_step1(tiny)
    first = capsys.readouterr()
    assert "step1: runs (nothing made yet)" in first.err
    assert "epochs=2" in first.err
    run_step1(tiny)
    second = capsys.readouterr()
    assert second.err.startswith("step1: up to date, same configuration")
    assert first.out == second.out
    assert Path(first.out.strip()).is_dir()
    run_step1(dataclasses.replace(tiny, set=["epochs=3"]))
    assert "step1: runs (configuration.epochs: 2 → 3)" in capsys.readouterr().err
    run_step1(dataclasses.replace(tiny, force=True))
    assert "step1: runs (--force)" in capsys.readouterr().err


def test_a_forced_run_that_broke_off_is_finished_without_force(tiny, capsys):
    """--force again would begin anew; the artifact of before is there all the while."""
    run_step1(tiny)
    request = context_of(tiny).request("step1", context_of(tiny).resolve(Step1Config, "step1"))
    request.partial.mkdir()
    (request.partial / "resume.pt").touch()
    capsys.readouterr()
    assert context_of(tiny).find_input("step1").path == request.path.resolve()
    run_step1(tiny)
    assert "step1: runs (an earlier run broke off: resuming" in capsys.readouterr().err
    assert not request.partial.exists()


def test_leftovers_of_a_killed_run_are_removed(tiny, capsys):
    run_step1(tiny)
    stage = tiny.runs / "tiny" / "step1"
    names = sorted(path.name for path in stage.iterdir())
    (stage / f"{names[0]}.lock").touch()
    (stage / ".latest.4711").symlink_to(names[0])
    run_step1(dataclasses.replace(tiny, dry_run=True))
    assert len(list(stage.iterdir())) == len(names) + 2
    run_step1(tiny)
    assert sorted(path.name for path in stage.iterdir()) == names


def test_changed_annotations_are_a_reason(tiny, capsys):
    run_step1(tiny)
    capsys.readouterr()
    with (tiny.data_root / "tiny" / "pairs.jsonl").open("a") as file:
        file.write('{"image": "a.png", "ref": "cow", "sentence": "the cow"}\n')
    run_step1(tiny)
    assert "runs (inputs.data: " in capsys.readouterr().err


def replace_picture(tiny, name):
    path = tiny.data_root / "tiny" / "images" / name
    PIL.Image.new("RGB", (6, 4), "red").save(path)


def test_replaced_images_of_its_split_are_a_reason(tiny, capsys):
    run_step1(tiny)
    replace_picture(tiny, "b.png")  # of val
    run_step1(tiny)
    assert "up to date" in capsys.readouterr().err
    replace_picture(tiny, "a.png")
    run_step1(tiny)
    assert "runs (inputs.images: " in capsys.readouterr().err


def test_responses_of_other_images_are_refused(tiny):
    run_step1(tiny)
    config = context_of(tiny).resolve(ResponsesConfig, "responses")
    with publish(
        context_of(tiny).request(
            "responses", config, inputs=[context_of(tiny).find_input("step1")], flags={"split": "val"}
        )
    ) as work:
        (work.path / "val.zarr").touch()
    replace_picture(tiny, "b.png")
    with pytest.raises(RisError, match=r"responses/val .* images that have changed .*ris dump-responses"):
        context_of(tiny).find_input("responses", split="val")


def test_missing_images_are_named_before_any_work(tiny):
    (tiny.data_root / "tiny" / "images" / "a.png").unlink()
    with pytest.raises(RisError, match=r"tiny train: 1 of 1 images and masks are missing or empty: .*a\.png"):
        context_of(tiny).open_dataset("train", with_images=True)
    context_of(tiny).open_dataset("train")


def test_labels_and_responses_of_other_annotations_are_refused(tiny, capsys):
    """Their ids may mean other objects by now; a network that was trained on them is only remarked on."""
    run_step1(tiny)
    config = context_of(tiny).resolve(ResponsesConfig, "responses")
    step1 = context_of(tiny).find_input("step1")
    with publish(context_of(tiny).request("responses", config, inputs=[step1], flags={"split": "val"})) as work:
        (work.path / "val.zarr").touch()
    context_of(tiny).find_input("responses", split="val")
    path = tiny.data_root / "tiny" / "pairs.jsonl"
    path.write_text(path.read_text().replace("the cat", "the dog"))
    capsys.readouterr()
    with pytest.raises(RisError, match=r"responses/val .* annotations that have changed .*ris dump-responses"):
        context_of(tiny).find_input("responses", split="val")
    assert context_of(tiny).find_input("step1").digest == step1.digest
    assert "step1 is stale: " in capsys.readouterr().err


def test_finished_runs_where_nobody_may_write_answer(tiny, monkeypatch):
    """As root, for whom no permission counts: the system refuses to make a link."""
    run_step1(tiny)
    link = tiny.runs / "tiny" / "step1" / "latest"
    link.unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run_step1(tiny)
    assert not link.exists()


def test_dry_run_writes_nothing(tiny, capsys):
    run_step1(dataclasses.replace(tiny, dry_run=True))
    output = capsys.readouterr()
    assert "step1: would run (nothing made yet)" in output.err
    assert output.out == ""
    assert not tiny.runs.exists()


def test_json_prints_the_manifest_and_quiet_nothing_else(tiny, capsys):
    run_step1(dataclasses.replace(tiny, json=True, quiet=True))
    output = capsys.readouterr()
    assert output.err == ""
    manifest = json.loads(output.out)
    assert manifest["dataset"] == "tiny"
    assert manifest["configuration"]["epochs"] == 2


def test_an_input_is_kept_by_its_digest(tiny):
    run_step1(tiny)
    step1 = context_of(tiny).find_input("step1")
    request = context_of(tiny).request("step2", Step1Config(), inputs=[step1], flags={"labels": "refine"})
    assert request.inputs["step1"] == step1.digest
    assert request.flags == {"labels": "refine"}


def test_a_missing_input_names_the_command_as_it_has_to_be_typed(tiny):
    places = f"--dataset {tiny.dataset} --data-root {tiny.data_root} --runs {tiny.runs}"
    with pytest.raises(RisError) as caught:
        context_of(tiny).find_input("step1")
    assert str(caught.value) == f"{tiny.runs / 'tiny'}: no finished step1 yet; run: ris train-step1 {places}"
    with pytest.raises(RisError, match=r"no finished responses \(val\) yet; run: ris dump-responses --split val "):
        context_of(tiny).find_input("responses", split="val")
    with pytest.raises(RisError, match=r"run: ris make-pseudolabels --no-refine .* --config c\.toml$"):
        context_of(dataclasses.replace(tiny, config=Path("c.toml"))).find_input("pseudolabels", refine=False)


def test_layers_of_the_configuration(tiny, tmp_path):
    assert context_of(tiny).resolve(Step1Config, "step1").epochs == 2
    (tmp_path / "c.toml").write_text("[step1]\nepochs = 4\nlr = 0.5\n")
    options = dataclasses.replace(tiny, config=tmp_path / "c.toml")
    assert context_of(options).resolve(Step1Config, "step1").epochs == 4
    options = dataclasses.replace(options, set=["epochs=5"])
    config = context_of(options).resolve(Step1Config, "step1")
    assert (config.epochs, config.lr, config.batch_size) == (5, 0.5, 48)


def test_an_unknown_stage_in_a_card_is_named(tiny):
    with Path(tiny.dataset).open("a") as file:
        file.write("[config.stpe2]\nlr = 1\n")
    with pytest.raises(RisError, match=r"unknown table \[config\.stpe2\]; did you mean 'step2'"):
        context_of(tiny).resolve(Step1Config, "step1")


def test_a_preset_is_stronger_than_the_card_and_weaker_than_what_the_user_gives(tiny, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[pseudolabels]\ncrf = false\nbeta = 5.0\n")
    options = dataclasses.replace(tiny, preset="best", config=file, set=["beta=6"])
    labels = context_of(options).resolve(PseudolabelConfig, "pseudolabels")
    assert (labels.combine, labels.compete, labels.crf, labels.beta) == ("mean", True, False, 6)
    assert context_of(tiny).resolve(PseudolabelConfig, "pseudolabels").combine == "prms"
    assert "--preset best" in context_of(options).command("ris score")
    with pytest.raises(RisError, match="no preset 'bset'; did you mean 'best'"):
        context_of(dataclasses.replace(tiny, preset="bset")).resolve(PseudolabelConfig, "pseudolabels")


def test_splits(tiny):
    assert context_of(tiny).find_splits(None) == ["train", "val"]
    assert context_of(tiny).find_splits(["val"]) == ["val"]
    with pytest.raises(RisError, match="no split 'vall'"):
        context_of(tiny).find_splits(["vall"])
    assert context_of(tiny).open_dataset("val").n_expressions == 1


def test_missing_annotations_are_named(tiny):
    (tiny.data_root / "tiny" / "pairs.jsonl").unlink()
    with pytest.raises(RisError, match=r"put .*pairs\.jsonl in place"):
        _ = context_of(tiny).data_digest


def test_an_unusable_device_is_named(tiny):
    with pytest.raises(RisError, match="--device gpu: not usable here"):
        _ = context_of(dataclasses.replace(tiny, device="gpu")).device
    assert context_of(dataclasses.replace(tiny, device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_precisions_of_cuda_are_refused_without_it(precision, tiny):
    line = f"--precision {precision} needs a CUDA device, and this one is cpu; use bf16 or fp32"
    with pytest.raises(RisError, match=line):
        _ = context_of(dataclasses.replace(tiny, device="cpu", precision=precision)).device


@pytest.mark.parametrize(
    ("has", "expected"), [((True, False), "bf16"), ((False, True), "bf16"), ((False,) * 2, "fp32")]
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(has, expected, tiny, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has[0])
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has[1])
    context = context_of(dataclasses.replace(tiny, device="cpu", precision="auto"))
    assert context.precision == expected
    request = context.request("step1", context.resolve(Step1Config, "step1"))
    assert request.precision == expected


def test_a_dump_of_a_trained_method_keeps_the_settings_of_the_dump(tiny, tmp_path):
    """Kept with the training's, they made every later look at the artifact fail."""
    file = tmp_path / "settings.toml"
    file.write_text('[amr]\nclip_weights = "none"\n[responses]\nprms = false\n')
    context = context_of(dataclasses.replace(tiny, config=file))
    amr = find_method("amr")
    dump = context.request(
        "responses", context.resolve(ResponsesConfig, "responses"), method=amr, flags={"split": "val"}
    )
    assert dump.chosen == {"prms": False}
    training = context.request("step1", context.resolve(amr.config, amr.table), method=amr)
    assert training.chosen == {"clip_weights": "none"}
