"""Runs in Python: the command line's bits, a notebook that is interrupted, and what a workdir gives back."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from flax.traverse_util import flatten_dict
from sklearn.linear_model import LogisticRegression

import tljax
from tests import forks
from tests.configs_tiny import get_config
from tests.conftest import ROOT, make_folder
from tests.conftest import tljax as command_line
from tljax.checkpoints.workdir import Workdir

TINY = f"--config={ROOT / 'tests' / 'configs_tiny.py'}:pretrained"


@pytest.fixture(scope="module", autouse=True)
def folder(lively_weights, tmp_path_factory) -> Path:
    root = make_folder(tmp_path_factory.mktemp("data") / "shapes")
    os.environ |= {"TLJAX_TEST_FOLDER": str(root), "TLJAX_TEST_WEIGHTS": str(lively_weights)}
    return root


@pytest.fixture(scope="module")
def result(tmp_path_factory, folder) -> tljax.Result:
    return tljax.train(get_config("pretrained"), tmp_path_factory.mktemp("runs") / "python")


def _content(workdir: str | Path) -> tuple[list, dict, dict[str, np.ndarray]]:
    """The metrics of a run without seconds, its result's, and all parameters."""
    timed = ("seconds", "input_seconds")
    rows = [{key: value for key, value in row.items() if key not in timed} for row in Workdir(workdir).metrics]
    run = tljax.load_run(workdir)
    return rows, tljax.Result(workdir).metrics, flatten_dict(run.params, sep="/")


def _assert_same_run(first: str | Path, second: str | Path) -> None:
    (rows, metrics, params), (others, other_metrics, other_params) = _content(first), _content(second)
    assert rows == others and metrics == other_metrics and params.keys() == other_params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, other_params[path], err_msg=path)


def test_python_and_the_command_line_give_the_same_bits(result, tmp_path):
    command_line("train", TINY, f"--workdir={tmp_path / 'line'}")
    _assert_same_run(result.workdir, tmp_path / "line")


NOTEBOOK = """
import os, sys, threading, time, pathlib, _thread
import tljax
from tests.configs_tiny import get_config

workdir = pathlib.Path(sys.argv[1])

def interrupt():
    while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text().splitlines()) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), 2)

threading.Thread(target=interrupt, daemon=True).start()
config = get_config("pretrained")
try:
    tljax.train(config, workdir)
except tljax.Stopped as stopped:
    print("stopped:", stopped)
print(tljax.train(config, workdir))
"""


def test_a_notebook_that_is_interrupted_and_goes_on_ends_as_one_that_was_not(result, tmp_path):
    done = forks.run(
        [sys.executable, "-c", NOTEBOOK, str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stopped: stopped at step " in done.stdout and "of 12 by SIGINT" in done.stdout
    _assert_same_run(result.workdir, tmp_path / "run")


def test_a_run_in_a_thread(result, tmp_path):
    """Where no signal is heard."""
    thread = threading.Thread(target=lambda: tljax.train(get_config("pretrained"), tmp_path / "thread"))
    thread.start()
    thread.join()
    _assert_same_run(result.workdir, tmp_path / "thread")


def test_what_a_result_says(result):
    stored = json.loads((Path(result.workdir) / "result.json").read_text())
    assert result.metrics == stored["splits"] and result.cost == stored["cost"]
    history = result.history
    assert isinstance(history, pd.DataFrame) and history.step[history.split == "train"].tolist() == list(range(1, 13))
    accuracy = stored["splits"]["test"]["accuracy"]
    assert f"test accuracy {accuracy:.4f} [" in repr(result) and result.workdir in repr(result)
    assert f"<td>accuracy {accuracy:.4f}</td>" in result._repr_html_()
    assert result.classes == ("disc", "square") and result.config.tuning.strategy == "full"
    assert result.plan["steps"] == 12
    # Trained already: the same call gives the same at once.
    assert tljax.train(get_config("pretrained"), result.workdir).metrics == result.metrics
    # A config read back is the config.
    assert tljax.train(result.config, result.workdir).metrics == result.metrics


def test_a_loaded_run_predicts_what_the_command_line_does(result, folder):
    run = tljax.load_run(result.workdir, step=12)
    files = sorted(folder.rglob("*.png"))[::5]
    lines = command_line("predict", f"--workdir={result.workdir}", "--format=jsonl", *files).stdout.splitlines()
    assert [json.loads(line)["probabilities"] for line in lines] == run.predict(files)
    assert run.predict([np.asarray(run.prepare([file])[0]) for file in files[:1]]) == run.predict(files[:1])
    logits = jax.jit(run.apply)(run.params, run.prepare(files))
    odds = np.exp(logits - logits.max(1, keepdims=True))
    expected = odds / odds.sum(1, keepdims=True)
    for row, answer in zip(expected, run.predict(files), strict=True):
        np.testing.assert_allclose([answer[name] for name in run.classes], row, rtol=1e-4)
    kernel, bias = run.params["head"]["kernel"], run.params["head"]["bias"]
    np.testing.assert_allclose(run.features(files) @ kernel + bias, logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(tljax.InputError, match=r"inputs\[1\]"):
        run.predict([files[0], np.zeros((3, 3))])
    with pytest.raises(tljax.InputError, match=r"no\.png: cannot be read"):
        run.predict(["no.png"])
    single = np.asarray(run.prepare(files[:1])[0])
    for call in (run.predict, run.features, run.prepare):
        for inputs in (str(files[0]), single, str(files[0].parent)):
            with pytest.raises(tljax.InputError, match=r"give a list|as one array"):
                call(inputs)


SCRIPT = """
import sys, tljax
from tests.configs_tiny import get_config
config = get_config("pretrained")
config.loss, config.steps, config.optim.warmup_steps = "loss_beside:sharp", 2, 0
tljax.train(config, sys.argv[1])
"""


@pytest.mark.slow
def test_a_loss_beside_a_script_is_found_by_the_next_process_elsewhere(tmp_path):
    text = "import optax\n\n\ndef sharp(outputs, labels):\n"
    text += "    return 2 * optax.softmax_cross_entropy_with_integer_labels(outputs, labels)\n"
    (tmp_path / "loss_beside.py").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "run"],
        check=True,
        cwd=tmp_path.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["reference_folders"] == {"loss_beside:sharp": str(tmp_path)}
    command_line("evaluate", f"--workdir={tmp_path / 'run'}", "--split=test")


def test_evaluate_gives_what_train_wrote(result, tmp_path):
    metrics = tljax.evaluate(result.workdir, "test")
    assert {name: metrics[name] for name in result.metrics["test"]} == result.metrics["test"]
    other = make_folder(tmp_path / "other", per_class=3, seed=3)
    assert tljax.evaluate(result.workdir, task__dataset=f"folder:{other}")["count"] == 6
    with pytest.raises(tljax.InputError, match=r"config\.optim\.learning_rate is the trained run's"):
        tljax.evaluate(result.workdir, optim__learning_rate=1.0)


def test_a_sweep_is_the_command_lines_and_ends_in_a_report(folder, tmp_path):
    config = get_config("pretrained")
    config.tuning.strategy, config.task.crop, config.task.augment, config.optim.warmup_steps = (
        "linear_probe",
        "center",
        (),
        0,
    )
    table = tljax.sweep(config, {"optim.learning_rate": [0.1, 1e-5], "seed": [0, 1]}, root=tmp_path / "runs")
    assert len(table) == 4 and not table.error.any()
    best = table.groupby("optim.learning_rate")["validation accuracy"].mean()
    chosen = table[table.chosen]
    assert set(chosen["optim.learning_rate"]) == {best.idxmax()} or best.nunique() == 1
    assert chosen["test accuracy"].notna().all() and table[~table.chosen]["test accuracy"].isna().all()
    alone = tljax.train(tljax.Result(chosen.workdir.iloc[0]).config, tmp_path / "alone")
    assert alone.metrics["test"]["accuracy"] == chosen["test accuracy"].iloc[0]
    methods = tljax.report(tmp_path / "runs", out=tmp_path / "report")
    assert methods["mean"].tolist() == [pytest.approx(chosen["test accuracy"].mean())]
    assert (tmp_path / "report" / "report.html").is_file()
    with pytest.raises(tljax.InputError, match=r"seed=3: give a list of values"):
        tljax.sweep(config, {"seed": 3}, root=tmp_path / "runs")
    with pytest.raises(tljax.InputError, match="optimm"):
        tljax.sweep(config, {"seed": [0]}, root=tmp_path / "none", tuned=("optimm",))
    assert not (tmp_path / "none").exists()


def test_a_probe_finds_scikit_learns_optimum():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = (rng.standard_normal((400, 8)) + np.eye(8)[labels] * 2).astype(np.float32)
    train, test = (features[:300], labels[:300]), (features[300:], labels[300:])
    outcome = tljax.probe(train, test)
    judge = LogisticRegression(C=outcome["C"], max_iter=2000, tol=1e-8).fit(*train)
    assert outcome["accuracy"] == pytest.approx(judge.score(*test), abs=0.011)
    nearest = tljax.probe(train, test, method="knn")
    assert nearest["k"] in (10, 20, 100, 200) and nearest["accuracy"] > 0.7
    words = np.array(["cat", "dog", "bird"])
    names = [(part[0], list(words[part[1]])) for part in (train, test)]
    assert tljax.probe(*names)["accuracy"] == pytest.approx(outcome["accuracy"], abs=0.011)
    with pytest.raises(tljax.InputError, match="labels of <U4: give names throughout"):
        tljax.probe(names[0], test)
    with pytest.raises(tljax.InputError, match="no method 'svm'"):
        tljax.probe(train, test, method="svm")
    with pytest.raises(tljax.InputError, match=r"features \[300, 8\] and labels \[100\]"):
        tljax.probe((features[:300], labels[:100]), test)
    with pytest.raises(tljax.InputError, match="labels of float64"):
        tljax.probe((features[:300], labels[:300] / 2), test)


def test_a_loop_of_ones_own_has_the_loss_curve_of_train(tmp_path, folder, lively_weights, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import own_loop

    config = own_loop.get_config()
    config.backbone.weights, config.task.dataset = str(lively_weights), f"folder:{folder}"
    config.task.update(train="train[:16]", test="train[16:]", image_size=32, batch_size=4)
    config.optim.learning_rate, config.tuning.k = 1e-2, 2
    curve = own_loop.losses(config)
    history = tljax.train(config, tmp_path / "run").history
    np.testing.assert_allclose(curve, history.loss[history.split == "train"], rtol=1e-4, atol=1e-6)
    assert curve[-1] < curve[0]


def test_importing_tljax_is_quick_and_imports_neither_jax_nor_rich():
    code = "import sys, time; t = time.process_time(); import tljax; print(time.process_time() - t, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    assert float(seconds) < 0.3 and not {"jax", "flax", "rich", "numpy", "pandas"} & set(modules)
    assert "load_backbone" in dir(tljax) and set(tljax.__all__) <= set(dir(tljax))
    for name in tljax.__all__:
        assert getattr(tljax, name).__doc__, name
    with pytest.raises(AttributeError, match="load_backbon"):
        tljax.load_backbon  # noqa: B018
