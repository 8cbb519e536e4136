"""`evaluate`: predictions that are kept, other data and sizes, many runs, and runs that are watched."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import metrics as judges

from tests import forks
from tests.configs_tiny import get_config
from tests.conftest import PATIENCE, ROOT, make_folder, make_table
from tests.data import made
from tljax import __main__
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.core.run import Run
from tljax.data.dataset import among
from tljax.data.splits import cut
from tljax.data.transforms import image
from tljax.errors import InputError
from tljax.evals import evaluator, predictions
from tljax.evals.evaluate import evaluate, find_workdirs
from tljax.evals.predictions import Predictions
from tljax.problems.registry import PROBLEMS
from tljax.training.trainer import train
from tljax.weights.adapt import resample_pos_embed

CLASSES = ("disc", "square", "tile")


@pytest.fixture(scope="module", autouse=True)
def data(lively_weights, tiny_text_weights, tmp_path_factory) -> Path:
    """A folder of drawings in three classes."""
    root = make_folder(tmp_path_factory.mktemp("data") / "three", classes=CLASSES)
    os.environ["TLJAX_TEST_FOLDER"] = str(root)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(lively_weights)
    os.environ["TLJAX_TEST_TABLE"] = str(make_table(tmp_path_factory.mktemp("table") / "reviews.csv"))
    os.environ["TLJAX_TEST_TEXT_WEIGHTS"] = str(tiny_text_weights)
    return root


def _train(workdir: Path, arg: str = "pretrained", **values) -> Path:
    found = get_config(arg)
    found.optim.learning_rate = 1e-2
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (found[section] if section else found)[name] = value
    train(Experiment.from_config(found), workdir)
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    """A run with checkpoints of steps 4 and 12."""
    cut = {"task__train": "train[:20]", "task__validation": "train[20:24]", "task__test": "train[24:]"}
    workdir = _train(tmp_path_factory.mktemp("run") / "three", checkpoint__keep=3, **cut)
    shutil.rmtree(workdir / "checkpoints" / "8")
    assert _kept(workdir) == [4, 12]
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it, for a test to leave its own results in."""
    shutil.copytree(finished, tmp_path / "runs" / "a", ignore=shutil.ignore_patterns("evaluations"))
    return tmp_path / "runs" / "a"


def _kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def _files(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir / "evaluations").iterdir()}


def _dates(workdir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (workdir / "evaluations").iterdir()}


def _main(capsys, *arguments: object, status: int = 0) -> tuple[str, str]:
    """Stdout and stderr of `tljax evaluate` in this process."""
    capsys.readouterr()
    assert __main__.main(["evaluate", *map(str, arguments)]) == status
    done = capsys.readouterr()
    return done.out, done.err


def _without_network(monkeypatch) -> None:
    monkeypatch.setattr(evaluator, "Run", None)


def test_the_metrics_are_those_of_the_stored_predictions(run, capsys):
    found = json.loads(_main(capsys, f"--workdir={run}", "--json")[0])
    assert json.loads((run / "evaluations" / "12-test.json").read_text()) == found
    assert sorted(_files(run)) == ["12-test.json", "12-test.parquet"]
    table = pq.read_table(run / "evaluations" / "12-test.parquet")
    logits = np.array(table["logits"].to_pylist())
    labels = table["label"].to_numpy()
    assert logits.shape == (12, 3) and found["count"] == 12
    assert logits.std(axis=0).min() > 0.01, logits  # so that what is compared below and elsewhere is not all the same
    assert found["accuracy"] == judges.accuracy_score(labels, logits.argmax(-1))
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert found["loss"] == pytest.approx(judges.log_loss(labels, odds, labels=range(3)), rel=1e-6)
    assert [CLASSES[label] for label in labels] == [name.split("/")[0] for name in table["id"].to_pylist()]
    facts = json.loads(table.schema.metadata[b"tljax"])
    assert facts["step"] == 12 and facts["split"] == "test" and tuple(facts["classes"]) == CLASSES
    assert facts["problem"] == "single_label" and {"run", "checkpoint", "data"} <= facts.keys()
    wanted = json.loads((run / "result.json").read_text())["splits"]["test"]
    assert {key: found[key] for key in wanted} == wanted


def test_a_second_evaluation_needs_no_network_and_touches_nothing(run, capsys, monkeypatch):
    first = _main(capsys, f"--workdir={run}", "--json")
    assert "stored" not in first[1]
    dates = _dates(run)
    _without_network(monkeypatch)
    again = _main(capsys, f"--workdir={run}", "--json", "--batch-size=3")
    assert again[0] == first[0] and _dates(run) == dates
    assert "from stored predictions" in again[1]
    assert "from stored predictions" in _main(capsys, f"--workdir={run}")[0]
    (run / "evaluations" / "12-test.json").unlink()  # as if killed between the two
    assert _main(capsys, f"--workdir={run}", "--json")[0] == first[0]
    assert "12-test.json" in _files(run)
    with pytest.raises(TypeError):
        evaluate(run, "4")


def test_predictions_that_are_gone_damaged_or_of_something_else_are_made_again(run, capsys):
    evaluate(run)
    before, file = _files(run), run / "evaluations" / "12-test.parquet"
    whole = bytearray(before[file.name])
    flipped = whole.copy()
    flipped[whole.find(pq.read_table(file)["logits"].to_numpy()[5].tobytes())] ^= 1  # one bit of one logit
    for damaged in (None, b"", whole[:500], flipped):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        assert "stored" not in _main(capsys, f"--workdir={run}")[0]
        assert _files(run) == before
    mine, facts = predictions.load(file)
    for key in facts:
        dataclasses.replace(mine, logits=-mine.logits).save(file, facts | {key: "another"})
        evaluate(run)
        assert _files(run) == before, key


def test_what_a_dead_evaluation_was_writing_is_taken_away(run):
    evaluate(run)
    for name in ("4-test.parquet.0123.tmp", "12-test.tmp", "x.tmp"):
        (run / "evaluations" / name).write_bytes(b"half")
    with (run / "evaluations" / "x.tmp").open("r+b") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        evaluate(run, "4")
    assert "x.tmp" in _files(run)
    assert set(_files(run)) - {"x.tmp"} == {f"{step}-test.{kind}" for step in (4, 12) for kind in ("json", "parquet")}


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_predictions_come_back_as_they_were(tmp_path, problem):
    rng = np.random.default_rng(0)
    labels = {
        "single_label": np.array([1, 0, 2], np.int32),
        "multi_label": np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32),
        "regression": rng.standard_normal((3, 3)),
    }[problem]
    logits = rng.standard_normal((3, 3)).astype(np.float64 if problem == "regression" else np.float32)
    kept = Predictions(PROBLEMS[problem], ("a", "b", "ç"), ["x", "y", "z"], labels, logits)
    kept.save(tmp_path / "x.parquet", {"step": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    found, facts = predictions.load(tmp_path / "x.parquet")
    assert facts == {"step": 3} and (found.problem.name, found.classes, found.ids) == (problem, kept.classes, kept.ids)
    for one, other in ((found.labels, labels), (found.logits, logits)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"y\.parquet: no predictions"):
        predictions.load(tmp_path / "y.parquet")


def _as_hf(folder: Path, out: Path, names: tuple[str, ...]) -> str:
    """Those classes of a folder of drawings as a data set that numbers them in this order; ids are rows."""
    import datasets

    files = sorted(path for path in folder.rglob("*.png") if path.parent.name in names)
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in files],
        "kind": [names.index(path.parent.name) for path in files],
    }
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(out))
    return f"hf:{out}"


@pytest.mark.parametrize("names", [("tile", "disc", "square"), ("square", "disc"), ("tile", "square")])
def test_another_data_set_is_judged_by_the_names_of_its_classes(run, data, tmp_path, capsys, names):
    evaluate(run, split="train[:36]")
    own, _ = predictions.load(run / "evaluations" / "12-train[:36].parquet")
    wanted = dict(zip(own.ids, own.logits, strict=True))
    there = _as_hf(data, tmp_path / "hf", names)
    flags = (f"--config.task.dataset={there}", "--config.task.test=train")
    found = json.loads(_main(capsys, f"--workdir={run}", *flags, "--json")[0])
    (file,) = (run / "evaluations").glob("12-test-*.parquet")
    theirs, _ = predictions.load(file)
    assert theirs.classes == CLASSES and len(theirs.ids) == 12 * len(names) == found["count"]
    files = sorted(path for path in data.rglob("*.png") if path.parent.name in names)
    hits = []
    for id, logits, label in zip(theirs.ids, theirs.logits, theirs.labels, strict=True):
        path = files[int(id.rpartition(" ")[2])]
        np.testing.assert_allclose(logits, wanted[str(path.relative_to(data))], rtol=1e-5, atol=1e-6)
        assert CLASSES[label] == path.parent.name
        hits.append(logits.argmax() == label)
    assert found["accuracy"] == np.mean(hits)
    assert found["overrides"] == {"task.dataset": there, "task.test": "train"} and found["slicing"] == "train"
    # The run was trained on the first twenty in stored order, which these are, too.
    experiment, resolved = Workdir(run).load()
    trained = set(Run(experiment, resolved).inputs.splits["train"].column("sha256").to_pylist())
    assert found["trained_on"] == sum(hashlib.sha256(path.read_bytes()).hexdigest() in trained for path in files) > 0
    assert json.loads(file.with_suffix(".json").read_text()) == found
    assert json.loads(_main(capsys, f"--workdir={run}", "--json")[0])["count"] == 12  # its own, beside it


def test_a_class_that_the_run_does_not_know_is_named(run, tmp_path, capsys):
    other = make_folder(tmp_path / "other", classes=("disc", "squaer"), per_class=2)
    _, told = _main(capsys, f"--workdir={run}", f"--config.task.dataset=folder:{other}", status=2)
    assert "'squaer', which is not among disc, square, tile; did you mean 'square'?" in told


def test_of_another_data_set_the_whole_split_is_taken(run, tmp_path, capsys):
    """The run's slices are of its own data: it tests on `train[24:]`."""
    other = make_folder(tmp_path / "other", classes=("tile", "disc"), per_class=5)
    flag = f"--config.task.dataset=folder:{other}"
    told, _ = _main(capsys, f"--workdir={run}", flag)
    assert f"folder:{other}: the whole of train, 10 examples" in told
    assert "classes by name: 0 disc is the run's 0, 1 tile is the run's 2" in told
    assert "classes of the run that are not there: square" in told
    assert evaluate(run, others={"task.dataset": f"folder:{other}"})["slicing"] == "train"
    # What is named is taken as it is, were it what the run says of its own data.
    (other / "disc" / "more.png").write_bytes((other / "disc" / "00.png").read_bytes())
    told, _ = _main(capsys, f"--workdir={run}", flag, "--split=train[:4]")
    assert f"folder:{other}: train[:4], 4 examples" in told
    told = _main(capsys, f"--workdir={run}", flag, "--config.task.test=train[24:]", status=2)[1]
    assert "no split 'train[24:]'" in told and "{'train': 11}" in told
    split = make_folder(tmp_path / "split" / "test", classes=CLASSES, per_class=2).parent
    make_folder(split / "train", classes=CLASSES, per_class=3)
    told, _ = _main(capsys, f"--workdir={run}", f"--config.task.dataset=folder:{split}")
    assert "the whole of test, 6 examples" in told and "classes by name: the same 3 in the same order" in told


def test_examples_that_the_run_was_trained_on_are_counted(run, data, tmp_path, capsys):
    """No metric of them says what the network does with new data."""
    other = make_folder(tmp_path / "other", classes=CLASSES, per_class=2, seed=7)
    flag = f"--config.task.dataset=folder:{other}"
    out, _ = _main(capsys, f"--workdir={run}", flag)
    assert "training split, too" not in out
    experiment, resolved = Workdir(run).load()
    trained = Run(experiment, resolved).inputs.splits["train"].ids[3]
    shutil.copy(data / trained, other / trained.partition("/")[0] / "copy.png")
    out, _ = _main(capsys, f"--workdir={run}", flag)
    assert "1 of 7 examples are in the run's training split, too (first: " in out and "copy.png)" in out
    (run / "training_contents.npy").unlink()  # as of a run of an earlier version
    out, _ = _main(capsys, f"--workdir={run}", flag)
    assert "whether the run was trained on some of it is not known" in out
    assert evaluate(run, others={"task.dataset": f"folder:{other}"})["trained_on"] is None


def test_data_that_have_changed_under_a_run_are_named(tmp_path, capsys):
    folder = make_folder(tmp_path / "three", classes=CLASSES, per_class=8)
    rest = {"task__validation": "train[16:20]", "task__test": "train[20:]"}
    workdir = _train(tmp_path / "run", task__dataset=f"folder:{folder}", task__train="train[:16]", **rest)
    (folder / "disc" / "00.png").unlink()
    _, err = _main(capsys, f"--workdir={workdir}", status=2)
    assert "trained on: an example or a label was added, removed or changed; bring it back, or train in another" in err
    shutil.move(folder / "disc", folder / "ring")
    _, err = _main(capsys, f"--workdir={workdir}", status=2)
    assert "its classes are ring, square, tile, and were disc, square, tile" in err


def test_classes_that_are_missing_or_there_twice_are_named():
    known = made.task({"train": made.base([0, 1, 2])}, ("a", "x", "y"))
    with pytest.raises(InputError, match="made has 'x', 'y', which is not among a, b"):
        among(known, ("a", "b"))
    for own, theirs, whose in ((("a", "a"), ("a", "b"), "made"), (("a", "b"), ("a", "b", "b"), "the run")):
        with pytest.raises(InputError, match=f"{whose} has the class '[ab]' twice"):
            among(made.task({"train": made.base([0, 1])}, own), theirs)
    accents = made.task({"train": made.base([1, 0])}, ("a", "Cafe\u0301"))
    assert cut(among(accents, ("Caf\u00e9", "b", "a")), "train").labels.tolist() == [0, 2]


def test_the_same_data_at_another_place_keep_their_splits_apart(run, data, tmp_path, capsys):
    moved = shutil.copytree(data, tmp_path / "moved")
    found = evaluate(run, others={"task.dataset": f"folder:{moved}"})
    assert found | {"overrides": 0, "slicing": 0} == evaluate(run) | {"overrides": 0, "slicing": 0}
    with pytest.raises(InputError, match="share 4 examples"):
        evaluate(run, others={"task.dataset": f"folder:{moved}", "task.test": "train[:4]"})
    with pytest.raises(InputError, match="share 4 examples"):
        evaluate(run, others={"task.test": "train[:4]"})


def test_labels_are_found_by_name():
    task = made.task({"train": made.base([0, 1, 1])}, ("b", "c"))
    found = among(task, ("a", "b", "c"))
    assert cut(found, "train").labels.tolist() == [1, 2, 2] and found.classes == ("a", "b", "c")
    several = made.task({"train": made.base([[0], [0, 1], []])}, ("c", "a"), "multi_label")
    labels = cut(among(several, ("a", "b", "c")), "train").labels
    assert labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    values = made.task({"train": made.base([[1.0, 2.0], [3.0, 4.0]])}, ("y", "x"), "regression")
    assert cut(among(values, ("x", "y")), "train").labels.tolist() == [[2, 1], [4, 3]]
    with pytest.raises(InputError, match="no values of 'z'"):
        among(values, ("x", "y", "z"))
    with pytest.raises(InputError, match="'y', which is not among x"):
        among(values, ("x",))


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_columns_of_labels_in_another_order_are_the_same_labels(tmp_path, problem):
    rng, lines = np.random.default_rng(0), ["text,first,second"]
    for i in range(32):
        values = rng.integers(0, 2, 2) if problem == "multi_label" else rng.standard_normal(2).round(3)
        lines.append(f"a {('good', 'bad', 'film', 'plot')[i % 4]} film,{values[0]},{values[1]}")
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    values = {"task__problem": problem, "task__label": ("first", "second"), "task__text": ("text",)}
    workdir = _train(tmp_path / "run", "text", task__dataset=f"csv:{tmp_path / 'x.csv'}", **values)
    wanted, found = evaluate(workdir), evaluate(workdir, others={"task.label": ("second", "first")})
    assert found.pop("overrides") == {"task.label": ("second", "first")} and found.pop("slicing") == "train[20:]"
    # Names of classes can be sorted; values make another data set, whose four texts the run has read.
    assert found.pop("trained_on", None) == (12 if problem == "regression" else None)
    assert found == wanted
    if problem == "regression":
        with pytest.raises(InputError, match="figures are of classes"):
            evaluator.Evaluation(workdir, draw=True)
    else:
        drawing = evaluator.Evaluation(workdir, draw=True)
        with drawing.checkpoints() as checkpoints:
            assert drawing.evaluate(checkpoints, "latest").stored
        assert [path.name for path in (workdir / "evaluations").glob("*.png")] == ["12-test.reliability.png"]
    short = evaluate(workdir, others={"task.max_tokens": 4})
    assert short["loss"] != wanted["loss"]
    with pytest.raises(InputError, match=r"config\.task\.flip_test has no effect on this run, which reads texts"):
        evaluate(workdir, others={"task.flip_test": True})


def test_a_larger_image_is_seen_through_a_resampled_grid(run, data):
    found = evaluate(run, others={"task.image_size": 64})
    (file,) = (run / "evaluations").glob("12-test-*.parquet")
    kept, _ = predictions.load(file)
    experiment, resolved = Workdir(run).load()
    trained = Run(experiment, resolved)
    with Workdir(run).checkpoints(experiment) as checkpoints:
        params = checkpoints.restore(12, trained.abstract_state(12)).params
    stem = params["backbone"]["stem"]
    table = resample_pos_embed(np.asarray(stem["pos_embed"]), (4, 4), (8, 8), "bicubic_antialias")
    assert table.shape == (1, 65, 16)
    stem["pos_embed"] = jnp.asarray(table)
    size = dataclasses.replace(resolved.preprocessing, size=64)
    pictures = [image.decode((data / id).read_bytes(), id) for id in kept.ids]
    x = image.normalize(jnp.stack([image.evaluation_view(one, size) for one in pictures]), size)
    features = trained.network.backbone.clone(grid=(8, 8)).apply({"params": params["backbone"]}, x)
    wanted = features @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(kept.logits, wanted, rtol=1e-4, atol=1e-5)
    evaluate(run)
    small, _ = predictions.load(run / "evaluations" / "12-test.parquet")
    assert np.abs(small.logits - kept.logits).max() > 1e-3
    assert found["accuracy"] == (kept.logits.argmax(-1) == kept.labels).mean()


def test_an_average_is_resampled_too(tmp_path):
    workdir = _train(tmp_path / "run", optim__average="ema", steps=4)
    evaluate(workdir, others={"task.image_size": 64})
    (file,) = (workdir / "evaluations").glob("4-test-*.parquet")
    kept, _ = predictions.load(file)
    experiment, resolved = Workdir(workdir).load()
    trained = Run(experiment, resolved)
    larger = Run(*evaluator.overrides.changed(experiment, resolved, {"task.image_size": 64})[:2])
    with Workdir(workdir).checkpoints(experiment) as checkpoints:
        state = checkpoints.restore(4, trained.abstract_state(4))
    averaged, _ = trained.evaluation_variables(state)
    assert not np.array_equal(averaged["head"]["kernel"], state.params["head"]["kernel"])
    params = larger.network.resized(averaged, trained.network)
    x = larger.inputs.reader(larger.inputs.splits["test"])(range(16))
    np.testing.assert_allclose(
        kept.logits, larger.network.forward({"params": params}, jnp.asarray(x))[0], rtol=1e-4, atol=1e-5
    )


def test_what_changes_no_prediction_makes_no_other_file(run, monkeypatch):
    evaluate(run)
    before = _files(run)
    _without_network(monkeypatch)
    quick = {"task.eval_batch_size": 2, "input.workers": 0, "task.image_size": 32, "compute_dtype": "float32"}
    assert evaluate(run, others=quick) == evaluate(run)
    assert _files(run) == before


def test_precision_and_mirror_images_can_be_others(run):
    plain = evaluate(run)
    half, flipped = evaluate(run, others={"compute_dtype": "bfloat16"}), evaluate(run, others={"task.flip_test": True})
    assert half["loss"] == pytest.approx(plain["loss"], rel=0.05)
    assert len({plain["loss"], half["loss"], flipped["loss"]}) == 3
    assert len(_files(run)) == 6


@pytest.mark.parametrize("key", ["seed", "backbone.name", "task.channels", "task.batch_size", "task.decode", "steps"])
def test_a_key_that_would_be_another_network_or_has_no_effect_is_refused(run, capsys, key):
    told = _main(capsys, f"--workdir={run}", f"--config.{key}={'x' if key.endswith(('name', 'code')) else 1}", status=2)
    assert f"config.{key} is the trained run's" in told[1] and "task.dataset, task.dataset_args, task.image" in told[1]


def test_unknown_keys_and_types_are_refused(run, capsys):
    assert "it is config.task.dataset" in _main(capsys, f"--workdir={run}", "--config.task.data=x", status=2)[1]
    assert "image_size=x" in _main(capsys, f"--workdir={run}", "--config.task.image_size=x", status=2)[1]
    assert "no effect on this run" in _main(capsys, f"--workdir={run}", "--config.task.max_tokens=4", status=2)[1]
    assert "no multiple of the patch" in _main(capsys, f"--workdir={run}", "--config.task.image_size=33", status=2)[1]
    assert "leave out --step=best" in _main(capsys, f"--workdir={run}", "--watch", "--step=best", status=2)[1]
    assert "unknown argument --stpe=1" in _main(capsys, f"--workdir={run}", "--stpe=1", status=2)[1]
    config = ("--config=tests/configs_tiny.py:pretrained", f"--workdir={run}")
    assert "give --workdir" in _main(capsys, *config, status=2)[1]


def test_every_checkpoint_with_one_compilation(run, capsys, monkeypatch):
    compiled = []
    original = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, *a, **k: compiled.append(1) or original(self, *a, **k)
    )
    lines = [json.loads(line) for line in _main(capsys, f"--workdir={run}", "--step=all", "--json")[0].splitlines()]
    assert [line["step"] for line in lines] == [4, 12]
    assert len(compiled) == 1
    for line in lines:
        assert line.pop("workdir") == str(run)
        assert json.loads((run / "evaluations" / f"{line['step']}-test.json").read_text()) == line
    assert lines[0]["loss"] != lines[1]["loss"]
    told, _ = _main(capsys, f"--workdir={run}", "--step=all")
    assert told.count("(from stored predictions)") == 2 and "95% interval" in told


def test_globs_name_what_they_skip_and_one_failure_stops_no_other(run, capsys, monkeypatch):
    runs = run.parent
    (runs / "notes").mkdir()
    for name in ("b", "c"):
        shutil.copytree(run, runs / name)
    for path in (runs / "b" / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(b"damaged")
    told, failed = _main(capsys, f"--workdir={runs}/*", status=1)
    assert "notes: no run here, skipped" in told
    for name in ("a", "c"):
        assert f"{runs / name} step 12 test  accuracy" in told and _files(runs / name)
    assert f"error: could not be evaluated: {runs / 'b'}" in failed and "no step is undamaged" in failed
    lines, _ = _main(capsys, f"--workdir={runs}/[ac]", f"--workdir={runs}/c", "--json")
    assert [json.loads(line)["workdir"] for line in lines.splitlines()] == [str(runs / "a"), str(runs / "c")]
    monkeypatch.chdir(runs.parent)
    for pattern, names in (("runs/[ac]", ["runs/a", "runs/c"]), ("*/?", ["runs/a", "runs/b", "runs/c"])):
        assert find_workdirs([pattern], print) == names
    (runs / "[x]").mkdir()  # which is there: no glob
    assert find_workdirs(["runs/[x]"], print) == ["runs/[x]"]
    assert "no run there" in _main(capsys, f"--workdir={runs}/x*", status=2)[1]
    assert "no run here" in _main(capsys, f"--workdir={runs}/a", f"--workdir={runs}/notes", status=2)[1]
    assert "no run here" in _main(capsys, f"--workdir={runs}/x", status=2)[1]
    told, failed = _main(capsys, f"--workdir={runs}/b", "--step=all", status=1)
    assert f"{runs / 'b'} step 4, {runs / 'b'} step 12" in failed


def test_a_checkpoint_that_goes_meanwhile_is_skipped(run, capsys, monkeypatch):
    original = evaluator.Evaluation._restored

    def restored(self, checkpoints, step):
        if step == 4:
            shutil.rmtree(run / "checkpoints" / "4", ignore_errors=True)  # as the run that still trains does
        return original(self, checkpoints, step)

    monkeypatch.setattr(evaluator.Evaluation, "_restored", restored)
    told, _ = _main(capsys, f"--workdir={run}", "--step=all")
    assert "step 4: gone, as the run keeps only some; skipped" in told
    assert sorted(_files(run)) == ["12-test.json", "12-test.parquet"]


def test_the_latest_is_looked_for_again_when_it_goes(run, monkeypatch):
    original = evaluator.Evaluation._restored

    def restored(self, checkpoints, step):
        if step == 12:
            shutil.rmtree(run / "checkpoints" / "12", ignore_errors=True)
        return original(self, checkpoints, step)

    monkeypatch.setattr(evaluator.Evaluation, "_restored", restored)
    assert evaluate(run)["step"] == 4


def test_figures_are_drawn_of_the_stored_predictions(run, capsys, monkeypatch):
    _main(capsys, f"--workdir={run}")
    _without_network(monkeypatch)
    _main(capsys, f"--workdir={run}", "--figures")
    for kind in ("reliability", "confusion"):
        assert Image.open(run / "evaluations" / f"12-test.{kind}.png").size[0] > 400
    assert len(_files(run)) == 4


def test_a_finished_run_is_watched_once(run, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    told, _ = _main(capsys, f"--workdir={run}", "--watch")
    assert "step 4 test" in told and "step 12 test" in told
    dates = _dates(run)
    _without_network(monkeypatch)
    told, _ = _main(capsys, f"--workdir={run.parent}/*", "--watch")
    assert told.count("(from stored predictions)") == 2 and _dates(run) == dates


def test_a_watcher_waits_for_a_run_and_follows_it(run, tmp_path, capsys, monkeypatch):
    late, looks = tmp_path / "runs" / "late", []

    def sleep(seconds):
        """What happens between two looks: nothing; a folder without a checkpoint; one; the other, and the end."""
        looks.append(seconds)
        if len(looks) == 2:
            shutil.copytree(run, late, ignore=shutil.ignore_patterns("result.json", "4", "12"))
        elif len(looks) == 3:
            shutil.copytree(run / "checkpoints" / "4", late / "checkpoints" / "4")
        elif len(looks) == 4:
            shutil.copytree(run / "checkpoints" / "12", late / "checkpoints" / "12")
            shutil.rmtree(late / "checkpoints" / "4")
        elif len(looks) == 5:
            shutil.copyfile(run / "result.json", late / "result.json")

    monkeypatch.setattr(time, "sleep", sleep)
    told, _ = _main(capsys, f"--workdir={late}", f"--workdir={run}", "--watch", "--interval=7")
    assert looks == [7, 7, 7, 7, 7]
    assert told.count(f"waiting for {late}: no run there yet") == 1
    for step in (4, 12):
        assert told.count(f"{late} step {step} test  accuracy") == 1
        assert told.count(f"{run} step {step} test  accuracy") == 1
        assert f"{step}-test.json" in _files(late)


@pytest.mark.slow
def test_a_watcher_beside_a_run_evaluates_each_step_once_whoever_is_killed(tmp_path):
    workdir, started = tmp_path / "run", []

    def start(name, *arguments):
        log = (tmp_path / f"{name}{len(started)}").open("w")
        process = forks.Popen(
            [sys.executable, "-m", "tljax", *arguments, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log
        )
        started.append((Path(log.name), process))
        return process

    def until(reached, process):
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline and process.poll() is None, started[-1][0].read_text()[-2000:]
            time.sleep(0.02)

    def evaluated():
        return len(list((workdir / "evaluations").glob("*.json")))

    def killed(process):
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    run = ("train", "--config=tests/configs_tiny.py:pretrained", "--config.steps=2000", "--config.eval_every=10")
    run += ("--config.log_every=100", "--config.optim.learning_rate=0.01", "--config.checkpoint.keep=1")
    watching = ("evaluate", "--watch", "--interval=0.1")
    watcher = start("watcher", *watching)
    trainer = start("trainer", *run)
    until(lambda: evaluated() >= 2, watcher)
    killed(watcher)
    watcher = start("watcher", *watching)
    before = evaluated()
    if trainer.poll() is None:
        until(lambda: evaluated() > before or trainer.poll() is not None, watcher)
    if trainer.poll() is None:
        killed(trainer)
        trainer = start("trainer", *run)
    assert trainer.wait(PATIENCE) == 0, started[-1][0].read_text()[-2000:]
    assert watcher.wait(PATIENCE) == 0
    assert _kept(workdir)[-1] == 2000
    for step in _kept(workdir):
        assert len(list((workdir / "evaluations").glob(f"{step}-*.json"))) == 1
    lines = [line for log, _ in started if log.name.startswith("watcher") for line in log.read_text().splitlines()]
    fresh = [
        line.split(" step ")[1].split()[0]
        for line in lines
        if " step " in line and "accuracy" in line and "stored" not in line
    ]
    assert len(fresh) == len(set(fresh)) and len(fresh) >= 3, fresh
    assert not list((workdir / "evaluations").glob("*.tmp"))
