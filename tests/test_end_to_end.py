"""The verbs as a user runs them, each in a process of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tbparse import SummaryReader

from tests import forks
from tests.conftest import PATIENCE, ROOT, tljax
from tljax.checkpoints.workdir import Workdir
from tljax.core.run import Run
from tljax.tuning.multipliers import digest

TINY = "--config=tests/configs_tiny.py"
LITTLE = f"{TINY}:pretrained"


@pytest.fixture(scope="module", autouse=True)
def _folder(shapes, tiny_weights):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(tiny_weights)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _folder) -> tuple[Path, subprocess.CompletedProcess]:
    workdir = tmp_path_factory.mktemp("run") / "vit"
    return workdir, tljax("train", LITTLE, f"--workdir={workdir}")


def _lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _leaves(workdir: Path) -> dict[str, bytes]:
    """Every array of the last checkpoint, as bytes."""
    import jax

    experiment, resolved = Workdir(workdir).load()
    with Workdir(workdir).checkpoints(experiment) as saved:
        step = saved.find_step("latest")
        state = saved.restore(step, Run(experiment, resolved).abstract_state(step))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def test_train_leaves_what_the_contract_says(finished):
    workdir, done = finished
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["optim"]["learning_rate"] == 1e-3
    assert config["resolved"]["classes"] == ["disc", "square"]
    assert {"jax", "flax", "optax", "python"} <= set(config["versions"])
    assert "tljax train" in config["command"]
    assert len(config["git_commit"] or "0" * 40) >= 40
    lines = _lines(workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 8, 12]
    result = json.loads((workdir / "result.json").read_text())
    assert result["splits"]["test"]["count"] == 4
    assert result["splits"]["validation"]["count"] == 4
    assert result["steps"] == 12
    assert result["cost"]["frozen_params"] == 0
    assert result["cost"]["optimizer_state_bytes"] == 8 * result["cost"]["trainable_params"]
    assert result["frozen_digest_before"] == result["frozen_digest_after"] == digest({})
    plan = json.loads((workdir / "plan.json").read_text())
    assert plan["cost"] == result["cost"]
    assert sum(row["state_bytes"] for row in plan["groups"]) == result["cost"]["optimizer_state_bytes"]
    for word in ("test accuracy", "trainable parameters", "× full fine-tuning", "train 12/12"):
        assert word in done.stdout


def test_tensorboard_has_the_same_numbers(finished):
    workdir, _ = finished
    scalars = SummaryReader(str(workdir)).scalars
    found = scalars[scalars.tag == "train/loss"].sort_values("step")
    wanted = [line for line in _lines(workdir) if line["split"] == "train"]
    assert found.step.tolist() == [line["step"] for line in wanted]
    np.testing.assert_allclose(found.value, [line["loss"] for line in wanted], rtol=1e-6)


def test_a_finished_run_is_left_alone(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "now", "beats": 1}  # no process has this number
    (workdir / "writer.json").write_text(json.dumps(dead))  # killed after the result, before it let go
    done = tljax("train", LITTLE, f"--workdir={workdir}")
    assert "is finished: nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before


def test_another_config_on_the_same_workdir_is_refused_with_the_difference(finished):
    workdir, _ = finished
    done = tljax("train", LITTLE, f"--workdir={workdir}", "--config.optim.learning_rate=0.5", status=2)
    assert "config.optim.learning_rate: 0.001 there, 0.5 now" in done.stderr
    assert "give another --workdir" in done.stderr


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluate_gives_the_bits_that_train_wrote(finished, split):
    workdir, _ = finished
    found = json.loads(tljax("evaluate", f"--workdir={workdir}", f"--split={split}", "--json").stdout)
    wanted = json.loads((workdir / "result.json").read_text())["splits"][split]
    assert {key: found[key] for key in wanted} == wanted
    assert json.loads((workdir / "evaluations" / f"12-{split}.json").read_text()) == found


def test_evaluate_the_best_step(finished):
    workdir, _ = finished
    lines = [line for line in _lines(workdir) if line["split"] == "validation"]
    best = max(line["accuracy"] for line in lines)
    found = json.loads(tljax("evaluate", f"--workdir={workdir}", "--step=best", "--split=validation", "--json").stdout)
    assert found["accuracy"] == best
    assert best in [line["accuracy"] for line in lines if line["step"] == found["step"]]


def test_inspect_prints_the_plan_and_trains_nothing(finished):
    command = ("inspect", TINY, "--config.tuning.strategy=last_k", "--config.tuning.k=1", "--json")
    found = json.loads(tljax(*command).stdout)
    multipliers = {row["group"]: row["multipliers"] for row in found["groups"]}
    assert multipliers["block_11"] == multipliers["norm"] == multipliers["head"] == [1.0]
    assert multipliers["block_10"] == multipliers["stem"] == [0.0]
    leaves = {row["group"]: (len(row["trainable_leaves"]), row["leaves"]) for row in found["groups"]}
    assert leaves["block_11"] == (12, 12)
    assert leaves["head"] == (2, 2)
    assert leaves["block_10"] == (0, 12)
    cost = found["cost"]
    assert cost["trainable_params"] == sum(row["trainable_params"] for row in found["groups"])
    assert 0 < cost["forward_flops"] < cost["step_flops"]
    assert cost["step_temp_bytes"] > 0
    assert "12 of 12" in tljax(*command[:-1]).stdout
    some = ("--config.tuning.strategy=pattern", "--config.tuning.patterns=(('.*/(fc1|head)/bias', 1.0), ('.*', 0.0))")
    assert "1 of 12: mlp/fc1/bias" in tljax("inspect", TINY, *some).stdout


# Checkpoints are at steps 4, 8, …; the steps to be killed after are within a stretch between them, at a phase's last
# step, and just after a switch. `test_kill.py` has more strategies.
KILLED = {
    "lp_ft": (["--config.tuning.strategy=lp_ft", "--config.optim.average=ema"], (7, 12, 13)),
    "gradual": (
        [
            *("--config.tuning.strategy=gradual_unfreezing", "--config.tuning.every=5"),
            *("--config.optim.accumulate=2", "--config.regularize.dropout=0.1", "--config.regularize.l2_sp=0.1"),
        ],
        (10, 17),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, case, tiny_resnet_weights, monkeypatch):
    flags, steps = KILLED[case]
    if case == "lp_ft":  # statistics of BatchNorm are of the second phase
        monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(tiny_resnet_weights))

    def command(workdir):
        fixed = ["train", LITTLE, f"--workdir={workdir}", "--config.steps=24"]
        return [sys.executable, "-m", "tljax", *fixed, *flags]

    forks.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    killed = tmp_path / "killed"
    for wait_for in steps:
        process = forks.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "metrics.jsonl").exists() and f'"step": {wait_for},' in (killed / "metrics.jsonl").read_text():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    done = forks.run(command(killed), cwd=ROOT, check=True, capture_output=True, text=True)
    assert "resuming" in done.stdout
    assert _leaves(killed) == _leaves(tmp_path / "whole")
    histories = [
        [{k: v for k, v in line.items() if k not in ("seconds", "input_seconds")} for line in _lines(tmp_path / name)]
        for name in ("killed", "whole")
    ]
    assert histories[0] == histories[1]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")]
    for key in ("splits", "cost", "frozen_digest_before", "frozen_digest_after"):
        assert results[0][key] == results[1][key]
    assert not list((killed / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(
    ("model", "flags"),
    [("vit", ()), ("resnet", ()), ("vit", ("--config.task.batch_size=8", "--config.optim.accumulate=2"))],
)
def test_four_devices_train_what_one_does(tmp_path, model, flags, tiny_resnet_weights, monkeypatch):
    if model == "resnet":
        monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(tiny_resnet_weights))
    for devices in ("1", "4"):
        command = ("train", LITTLE, f"--workdir={tmp_path / devices}", "--config.optim.name=sgd")
        tljax(*command, "--config.steps=3", *flags, JAX_NUM_CPU_DEVICES=devices)
    one, four = ({k: np.frombuffer(v, np.float32) for k, v in _leaves(tmp_path / n).items()} for n in ("1", "4"))
    assert len(one) > 30
    for path, leaf in one.items():
        # Sums over the batch, BatchNorm's among them, are added in another order.
        np.testing.assert_allclose(four[path], leaf, rtol=1e-4, atol=2e-6, err_msg=path)
    costs = [json.loads((tmp_path / n / "result.json").read_text())["cost"] for n in ("1", "4")]
    assert costs[0]["forward_flops"] == pytest.approx(costs[1]["forward_flops"], rel=0.02)
    assert costs[0]["step_share_of_full"] == costs[1]["step_share_of_full"] == 1


@pytest.mark.slow
def test_the_whole_test_split_counts_once_whatever_the_batch_and_the_devices(tmp_path):
    workdir = tmp_path / "run"
    data = ("--config.task.dataset=mnist_5k", "--config.task.train=train[:16]", "--config.task.validation=")
    tljax("train", LITTLE, f"--workdir={workdir}", *data, "--config.task.test=train[4500:]", "--config.steps=4")
    wanted = json.loads((workdir / "result.json").read_text())["splits"]["test"]
    assert wanted["count"] == 500
    for devices, batch_size in ((1, 7), (4, 64), (4, 4096)):
        shutil.rmtree(workdir / "evaluations", ignore_errors=True)  # which are read, where they are
        command = ("evaluate", f"--workdir={workdir}", f"--batch-size={batch_size}", "--json")
        found = json.loads(tljax(*command, JAX_NUM_CPU_DEVICES=str(devices)).stdout)
        assert found["count"] == 500
        assert found["accuracy"] == wanted["accuracy"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_convert_gives_weights_that_train_takes(tmp_path):
    folder = tmp_path / "weights"
    tljax("convert", "resnet50_half.open_nsfw", folder)
    facts = json.loads((folder / "tljax.json").read_text())
    assert facts["pretrained"]["preprocessing"]["channels"] == "bgr"
    assert len(facts["ignored"]) == 2
    assert "name a new folder" in tljax("convert", "resnet50_half.open_nsfw", folder, status=2).stderr
    base = ("inspect", "--config=configs/quickstart.py", "--config.backbone.name=", "--json")
    found, wanted = (
        json.loads(tljax(*base, f"--config.backbone.weights={weights}").stdout)
        for weights in (folder, "resnet50_half.open_nsfw")
    )
    same = {"weights": "", "memory": ""}  # of which some is free now and other is then
    assert found | same == wanted | same


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_an_exported_run_evaluates_to_the_same_bits(finished, tmp_path, to):
    workdir, _ = finished
    tljax("convert", workdir, tmp_path / to, f"--to={to}")
    assert json.loads((tmp_path / to / "config.json").read_text())
    tljax("convert", tmp_path / to, tmp_path / "back")
    wanted = json.loads((workdir / "result.json").read_text())["splits"]["test"]
    for weights in (tmp_path / to, tmp_path / "back"):
        flags = ("--config.backbone.name=", f"--config.backbone.weights={weights}", "--config.head.init=pretrained")
        found = json.loads(tljax("evaluate", TINY, *flags, "--json").stdout)
        assert {key: found[key] for key in wanted} == wanted


def test_lora_is_merged_into_what_is_exported(tmp_path):
    base = [LITTLE, "--config.tuning.strategy=lora", "--config.optim.learning_rate=0.01"]
    done = tljax("train", *base, f"--workdir={tmp_path / 'run'}")
    assert "2 of 14" in done.stdout
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    pair = ["backbone/block_0/attention/qkv/lora_a", "backbone/block_0/attention/qkv/lora_b"]
    assert plan["groups"][1]["trainable_leaves"] == pair
    assert set(pair) < set(plan["weights_become"]["initialized"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["frozen_digest_before"] == result["frozen_digest_after"] != digest({})
    assert result["cost"]["trainable_params"] == 3 * 8 * (16 + 48) + 2 * (16 + 1)
    tljax("convert", tmp_path / "run", tmp_path / "timm", "--to=timm")
    weights = ("--config.backbone.name=", f"--config.backbone.weights={tmp_path / 'timm'}")
    found = json.loads(tljax("evaluate", TINY, *weights, "--config.head.init=pretrained", "--json").stdout)
    assert found["loss"] == pytest.approx(result["splits"]["test"]["loss"], abs=1e-5)
    assert found["accuracy"] == result["splits"]["test"]["accuracy"]


def test_what_cannot_be_merged_is_not_exported(tmp_path):
    flags = ("--config.tuning.strategy=adapter", "--config.tuning.bottleneck=2", f"--workdir={tmp_path / 'run'}")
    tljax("train", LITTLE, *flags)
    refused = tljax("convert", tmp_path / "run", tmp_path / "timm", "--to=timm", status=2).stderr
    assert "a plain network has no place for Adapter(bottleneck=2" in refused


def test_learning_rates_are_tried_and_drawn(tmp_path):
    picture = tmp_path / "rates.png"
    found = json.loads(tljax("inspect", LITTLE, f"--lr-find={picture}", "--json").stdout)["lr_find"]
    assert Image.open(picture).size == (900, 600)
    rates = found["rates"]
    assert rates[0] == pytest.approx(1e-7) and rates == sorted(rates)
    assert rates[1] / rates[0] == pytest.approx(1e8 ** (1 / 99), rel=1e-4)
    assert rates[0] < found["suggestion"] <= rates[-1]
    assert len(found["losses"]) == len(rates) and min(found["losses"]) < found["losses"][0]


def test_a_plan_of_phases_is_shown_before_it_is_run():
    flags = ("--config.tuning.strategy=gradual_unfreezing", "--config.tuning.every=4")
    found = json.loads(tljax("inspect", LITTLE, *flags, "--json").stdout)
    assert [(phase["strategy"], phase["start"], phase["stop"]) for phase in found["phases"]] == [
        ("linear_probe", 0, 4),
        ("last_k", 4, 8),
        ("last_k", 8, 12),
    ]
    moving = [[row["group"] for row in phase["groups"] if row["trainable_params"]] for phase in found["phases"]]
    assert moving == [["head"], ["block_2", "norm", "head"], ["block_1", "block_2", "norm", "head"]]
    blocks = found["cost"]["phases"]
    assert blocks[0]["step_flops"] < blocks[1]["step_flops"] < blocks[2]["step_flops"]
    assert found["cost"]["step_flops"] == pytest.approx(np.mean([block["step_flops"] for block in blocks]))
    shown = tljax("inspect", LITTLE, *flags).stdout
    assert "0 … 3" in shown and "last_k, k=2" in shown


@pytest.mark.slow
def test_a_run_on_one_channel_from_weights_for_three(finished, shapes, tmp_path):
    workdir, _ = finished
    tljax("convert", workdir, tmp_path / "weights")
    flags = ("--config.backbone.name=", f"--config.backbone.weights={tmp_path / 'weights'}", "--config.steps=2")
    grey = ("--config.task.channels=1", f"--workdir={tmp_path / 'run'}", "--config.optim.warmup_steps=0")
    done = tljax("train", TINY, *flags, *grey)
    assert [part.strip() for part in done.stdout.split("adapted")[1].split("│")[1:3]] == ["1", "params/stem/kernel"]
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    assert resolved["preprocessing"]["channels"] == "grey" and len(resolved["preprocessing"]["mean"]) == 1
    wanted = json.loads((tmp_path / "run" / "result.json").read_text())["splits"]["test"]
    found = json.loads(tljax("evaluate", f"--workdir={tmp_path / 'run'}", "--json").stdout)
    assert {key: found[key] for key in wanted} == wanted
    (line,) = tljax("predict", f"--workdir={tmp_path / 'run'}", shapes / "disc" / "00.png").stdout.splitlines()
    assert {part.split()[0] for part in line.split("\t")[1:]} == {"disc", "square"}
    for to in ("orbax", "timm", "hf"):
        tljax("convert", tmp_path / "run", tmp_path / to, f"--to={to}")
        flags = (
            "--config.backbone.name=",
            f"--config.backbone.weights={tmp_path / to}",
            "--config.head.init=pretrained",
        )
        found = json.loads(tljax("evaluate", TINY, *flags, "--json").stdout)
        assert {key: found[key] for key in wanted} == wanted, to


def test_help_names_every_verb():
    done = tljax("--help")
    for verb in ("train", "evaluate", "predict", "inspect", "convert"):
        assert verb in done.stdout
        assert "usage" in tljax(verb, "--help").stdout
    assert "no verb 'trian'; there are: train" in tljax("trian", status=2).stderr
