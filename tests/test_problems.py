"""Texts, several labels and values: from a table to a result, by the verbs and by value."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.conftest import ROOT, make_table, tiny_run, tljax
from tljax.cli.convert import convert
from tljax.config import schema, serialization
from tljax.config.schema import BackboneConfig, Experiment
from tljax.core.run import Run, prepare
from tljax.errors import InputError
from tljax.evals.evaluate import evaluate, evaluate_untrained
from tljax.evals.predict import predict
from tljax.training.trainer import train
from tljax.weights.pretrained import resolve_weights, restore

TEXT, IMAGES = "--config=tests/configs_tiny.py:text", "--config=tests/configs_tiny.py:pretrained"


@pytest.fixture(scope="module", autouse=True)
def table(tmp_path_factory, tiny_text_weights, tiny_weights) -> Path:
    os.environ["TLJAX_TEST_TABLE"] = str(make_table(tmp_path_factory.mktemp("table") / "reviews.csv"))
    os.environ["TLJAX_TEST_TEXT_WEIGHTS"] = str(tiny_text_weights)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(tiny_weights)
    return Path(os.environ["TLJAX_TEST_TABLE"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, table) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "text"
    done = tljax("train", TEXT, f"--workdir={workdir}")
    assert "texts of up to 16 tokens" in done.stdout
    assert "training texts are longer than task.max_tokens=16" in done.stdout
    return workdir


def _experiment(**values) -> Experiment:
    found = schema.default()
    found.steps, found.backbone.weights = 8, os.environ["TLJAX_TEST_TEXT_WEIGHTS"]
    found.task.update(dataset=f"csv:{os.environ['TLJAX_TEST_TABLE']}", max_tokens=16, token_multiple=4, batch_size=8)
    found.task.update(train="train[:16]", validation="train[16:24]", test="train[24:]", text=("text",))
    found.optim.update(name="sgd", learning_rate=0.1)
    found.update(eval_every=4)
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (found[section] if section else found)[name] = value
    return Experiment.from_config(found)


def test_evaluate_repeats_train_s_digits_from_the_workdir_alone(finished, tmp_path, table, tiny_text_weights):
    wanted = json.loads((finished / "result.json").read_text())["splits"]["test"]
    for batch in (3, 64):
        shutil.rmtree(finished / "evaluations", ignore_errors=True)  # which are read, where they are
        found = json.loads(tljax("evaluate", f"--workdir={finished}", f"--batch-size={batch}", "--json").stdout)
        assert found["count"] == wanted["count"] == 12
        assert found["accuracy"] == wanted["accuracy"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert (finished / "tokenizer" / "vocab.txt").read_bytes() == (tiny_text_weights / "vocab.txt").read_bytes()


def test_padding_changes_no_logit_and_each_length_is_a_program(table):
    run = prepare(_experiment(task__train="train", task__validation="", task__test=""))
    state, tokenizer = run.init_state(), run.inputs.tokenizer
    rows, _ = tokenizer.encode(["a very good film", "the plot"], 16)
    logits = [
        run.programs.eval_step(2, length)(state.params, state.batch_stats, tokenizer.pad(rows, length))
        for length in (8, 12, 16)
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-6)
    lengths = {batch["input"]["input_ids"].shape[1] for batch in run.train_input().batches(0, 20)}
    assert lengths <= {4, 8, 12, 16} and max(lengths) == run.resolved.length == 16


def test_a_killed_and_resumed_run_on_texts_has_the_same_bits(tmp_path, table):
    experiment = _experiment(regularize__dropout=0.1, tuning__strategy="full")
    train(experiment, tmp_path / "whole")
    folder, weights = tmp_path / "half", tmp_path / "weights"
    shutil.copytree(experiment.backbone.weights, weights)
    half = dataclasses.replace(experiment, backbone=BackboneConfig(weights=str(weights)))
    run = prepare(half)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tljax.training.callbacks.Saver.save", _stop_after(4))
        with pytest.raises(KeyboardInterrupt):
            train(half, folder)
    (weights / "vocab.txt").unlink()  # what a run needs to go on is in its workdir
    train(half, folder)
    states = []
    for path in (tmp_path / "whole", folder):
        from tljax.checkpoints.workdir import Workdir

        with Workdir(path).checkpoints(experiment) as checkpoints:
            states.append(checkpoints.restore(8, run.abstract_state(8)))
    jax.tree.map(np.testing.assert_array_equal, *states)


def _stop_after(last: int):
    from tljax.training.callbacks import Saver

    original = Saver.save

    def save(self, step, state):
        original(self, step, state)
        if step == last:
            raise KeyboardInterrupt

    return save


def test_pairs_are_read_as_two_and_told_apart(tmp_path, table):
    experiment = _experiment(task__text=("text", "second"))
    run = prepare(experiment)
    assert run.resolved.pairs
    types = next(run.train_input().batches(0, 1))["input"]["token_type_ids"]
    assert (types.sum(axis=1) >= 2).all()
    train(experiment, tmp_path / "run")
    (tmp_path / "pairs.txt").write_text("a film\tgood film\n")
    ((name, found),) = predict(tmp_path / "run", [tmp_path / "pairs.txt"])
    assert name == "a film\tgood film" and sum(found.values()) == pytest.approx(1)
    (tmp_path / "one.txt").write_text("a film\n")
    ((_, error),) = predict(tmp_path / "run", [tmp_path / "one.txt"])
    assert str(error).endswith("one.txt, line 1: needs two texts with a tab between")


def test_several_labels_from_table_to_result(tmp_path, table):
    experiment = _experiment(task__problem="multi_label", task__label=("both",), tuning__strategy="full")
    result = train(experiment, tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert found["mean_average_precision"] == result["splits"]["test"]["mean_average_precision"]
    run = prepare(experiment)
    assert run.resolved.classes == ("praise", "strong")
    split = run.inputs.splits["test"]
    (tmp_path / "x.txt").write_text("".join(example["text"] + "\n" for example in split))
    odds = np.array(
        [[row[name] for name in run.resolved.classes] for _, row in predict(tmp_path / "run", [tmp_path / "x.txt"])]
    )
    assert found["mean_average_precision"] == pytest.approx(
        np.mean([average_precision_score(split.labels[:, i], odds[:, i]) for i in range(2)])
    )
    assert found["exact_match"] == ((odds > 0.5) == (split.labels > 0)).all(-1).mean()


def test_values_are_scaled_for_the_network_and_judged_in_their_own_units(tmp_path, table):
    experiment = _experiment(task__problem="regression", task__label=("length",), optim__learning_rate=0.05)
    run = prepare(experiment)
    lengths = {name: split.labels[:, 0] for name, split in run.inputs.splits.items()}
    mean, spread = lengths["train"].mean(), lengths["train"].std()
    assert run.resolved.targets[0] == pytest.approx((mean, spread))
    # The head starts at zero, which is the mean of the training split.
    assert evaluate_untrained(experiment)["mae"] == pytest.approx(np.abs(lengths["test"] - mean).mean(), rel=1e-5)
    batch = run.train_input().batch(0)
    wanted = (lengths["train"][[index for _, index in run.train_input().indices(0)]] - mean) / spread
    np.testing.assert_allclose(batch["label"][:, 0], wanted, rtol=1e-5)
    result = train(experiment, tmp_path / "run")
    (tmp_path / "x.txt").write_text("".join(example["text"] + "\n" for example in run.inputs.splits["test"]))
    said = [row["length"] for _, row in predict(tmp_path / "run", [tmp_path / "x.txt"])]
    assert np.abs(np.array(said) - lengths["test"]).mean() == pytest.approx(result["splits"]["test"]["mae"], rel=1e-5)
    convert(BackboneConfig(weights=str(tmp_path / "run")), tmp_path / "converted")
    assert (tmp_path / "converted" / "vocab.txt").is_file()
    found = restore(resolve_weights(BackboneConfig(weights=str(tmp_path / "converted"))), run.network.backbone)
    x, found = jax.tree.map(jnp.asarray, (run.inputs.reader(run.inputs.splits["test"])(range(8)), found))
    features = run.network.backbone.apply({"params": found["params"]}, x)
    np.testing.assert_allclose((features @ found["head"]["kernel"] + found["head"]["bias"])[:, 0], said, rtol=1e-4)


def test_other_workers_and_caches_go_on_with_a_run(tmp_path, table):
    experiment = _experiment()
    train(experiment, tmp_path / "run")
    values = serialization.to_dict(experiment)
    values["input"] = {"workers": 0, "cache_gb": 0.0}
    assert train(Experiment.from_config(values), tmp_path / "run")["steps"] == 8
    values["seed"] = 1
    with pytest.raises(InputError, match=r"config\.seed: 0 there, 1 now"):
        train(Experiment.from_config(values), tmp_path / "run")


CASES = {
    "a network for images": ({"backbone__weights": "", "backbone__name": "vit_tiny_patch16"}, "reads images, and csv:"),
    "no tokenizer": ({"backbone__weights": "", "backbone__name": "bert_base"}, "set task.tokenizer"),
    "mixed texts": ({"regularize__mixup": 0.2}, "regularize.mixup mixes images"),
    "mirrored texts": ({"task__flip_test": True}, "task.flip_test is of images"),
    "unknown balance": ({"task__balance": "los"}, "(did you mean loss?)"),
    "weights of other classes": ({"task__class_weights": (1.0, 2.0, 3.0)}, "task.class_weights has 3, "),
    "weights twice": ({"task__class_weights": (1.0, 2.0), "task__balance": "loss"}, "keep one"),
    "balanced values": (
        {"task__problem": "regression", "task__label": ("length",), "task__balance": "loss"},
        "of problem=single_label",
    ),
    "a value's pretrained head": (
        {"task__problem": "regression", "task__label": ("length",), "head__init": "pretrained"},
        "rows of classes by name",
    ),
    "too short": ({"task__max_tokens": 2}, "no room beside"),
    "too long": ({"task__max_tokens": 64}, "task.max_tokens=64 is more than the 32 positions of bert_base"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_go_together_is_named(case, table):
    values, message = CASES[case]
    with pytest.raises(InputError) as error:
        run = prepare(_experiment(**values))
        run.programs.train_step(run.phases[0])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_balance_gives_rare_classes_their_share(shapes, tmp_path):
    for name, count in (("disc", 12), ("square", 3)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "data" / name / f"{i}.png").write_bytes((shapes / name / f"{i:02d}.png").read_bytes())
    dataset = f"folder:{tmp_path / 'data'}"
    run = tiny_run(dataset, task__balance="loss")
    assert run.resolved.class_weights == pytest.approx((15 / (2 * 12), 15 / (2 * 3)))
    batch = run.train_input().batch(0)
    assert batch["weight"] == pytest.approx(np.array(run.resolved.class_weights)[batch["label"]])
    _, found = run.programs.train_step(run.phases[0])(run.init_state(), batch)
    assert float(found["loss"]) == pytest.approx(np.log(2))  # the head starts at zero, whatever the weights
    drawn = tiny_run(dataset, task__balance="sampling").train_input()
    labels = np.concatenate([drawn.batch(step)["label"] for step in range(3)])
    assert np.bincount(labels).tolist() == [12, 12]


def test_the_loss_is_the_mean_by_weight(shapes):
    run = tiny_run(f"folder:{shapes}", "tiny_vit", head__init="truncated_normal")
    batch = run.train_input().batch(0)
    each = []
    for row in range(8):
        one = batch | {"weight": np.eye(8, dtype=np.float32)[row]}
        each.append(float(run.programs.train_step(run.phases[0])(run.init_state(), one)[1]["loss"]))
    weights = np.arange(1, 9).astype(np.float32)
    _, found = run.programs.train_step(run.phases[0])(run.init_state(), batch | {"weight": weights})
    assert float(found["loss"]) == pytest.approx(np.average(each, weights=weights), rel=1e-5)


def test_evaluation_may_average_the_mirror_image(shapes):
    plain, flipped = (
        tiny_run(f"folder:{shapes}", head__init="truncated_normal", task__flip_test=on) for on in (False, True)
    )
    image = plain.train_input().batch(0)["input"]
    state = plain.init_state()

    def logits(run: Run, image):
        return np.asarray(run.programs.eval_step(8)(state.params, state.batch_stats, image))

    wanted = (logits(plain, image) + logits(plain, image[:, :, ::-1])) / 2
    np.testing.assert_allclose(logits(flipped, image), wanted, atol=1e-6)
    assert not np.allclose(logits(plain, image), wanted, atol=1e-6)


def test_mixing_trains_and_a_step_repeats_itself(shapes):
    run = tiny_run(f"folder:{shapes}", regularize__mixup=0.4, regularize__cutmix=1.0, optim__accumulate=2)
    batch, program = run.train_input().batch(0), run.programs.train_step(run.phases[0])
    states = [program(run.init_state(), batch)[0] for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    plain = tiny_run(f"folder:{shapes}", optim__accumulate=2)
    other, _ = plain.programs.train_step(plain.phases[0])(plain.init_state(), batch)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), states[0].params, other.params)
    assert any(jax.tree.leaves(moved))


def test_inspect_looks_at_the_data_and_draws_what_the_network_sees(shapes, tmp_path):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    sheet = tmp_path / "sheet.png"
    command = ("inspect", IMAGES, "--data", f"--sheet={sheet}")
    found = json.loads(tljax(*command, "--json").stdout)
    assert sum(found["splits"]["train"]["classes"].values()) == 16
    assert found["warnings"] == [] and sheet.read_bytes()[1:4] == b"PNG"
    assert "disc" in tljax(*command).stdout
    done = tljax("inspect", TEXT, f"--sheet={sheet}", status=2)
    assert "--sheet draws images" in done.stderr


def test_train_warns_of_a_picture_that_two_splits_share(shapes, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(shapes, tmp_path / "data" / split)
        for path in (tmp_path / "data" / split).rglob("*1*.png"):
            path.write_bytes(path.read_bytes() + split.encode())  # which decodes to the same, but is another file
    command = (IMAGES, "--config.task.train=train", "--config.task.validation=")
    folder = {"TLJAX_TEST_FOLDER": str(tmp_path / "data")}
    options = ("--config.task.test=test", "--config.steps=3", f"--workdir={tmp_path / 'run'}")
    done = tljax("train", *command, *options, **folder)
    assert "WARNING: examples of test that train has too, by content: 18 (train/disc/" in done.stdout


@pytest.mark.slow
def test_a_run_on_images_or_texts_imports_neither_tensorflow_nor_torch(shapes, tmp_path):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    alone = "import sys, tljax.cli.train; assert not {'tensorflow', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", alone], cwd=ROOT, check=True)
    # Modules of these names that refuse to be imported stand before any that may be installed.
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    for kind in (IMAGES, TEXT):
        workdir = f"--workdir={tmp_path / kind[-4:]}"
        tljax("train", kind, workdir, "--config.steps=3", PYTHONPATH=paths)
        tljax("evaluate", workdir, PYTHONPATH=paths)
