"""Tables and Hugging Face's sets as sources, and how any source is prepared."""

import collections
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import forks
from tests.conftest import PATIENCE, ROOT, make_folder
from tests.data.test_tasks import column, load
from tljax.data.dataset import Item, Source
from tljax.data.records import array_records, record_parts
from tljax.data.transforms import image
from tljax.errors import InputError
from tljax.io.download.fetch import cache_dir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


def content(task, split="train") -> dict[str, tuple]:
    """id -> label, and what is stored."""
    found = task.bases[split].records.__getitems__(list(range(len(task.bases[split].index))))
    return dict(zip(column(task, "id", split), zip(column(task, "label", split), found, strict=True), strict=True))


def test_a_csv_of_images(shapes, tmp_path):
    (tmp_path / "t.csv").write_text(
        f'label,file,split,note\n square ,shapes/square/00.png,train,"a\nb"\ndisc,{shapes}/disc/00.png,val,\n'
        "square,shapes/square/01.png,train,x\ndisc,shapes/disc/01.png,TEST,\n"
    )
    shutil.copytree(shapes, tmp_path / "shapes")
    task = load(f"csv:{tmp_path / 't.csv'}")
    assert (task.kind, task.classes) == ("image", ("disc", "square"))
    assert sorted(content(task)) == ["00000000/shapes/square/00.png", "00000002/shapes/square/01.png"]
    picture = (shapes / "disc" / "00.png").read_bytes()
    assert content(task, "validation") == {f"00000001/{shapes}/disc/00.png": (0, {"image": picture})}
    assert list(task.bases) == ["train", "validation", "test"]


def test_rows_that_are_added_leave_the_order_of_the_others(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows[:30]))
    before = column(load(f"csv:{tmp_path / 't.csv'}"), "id")
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows))
    after = column(load(f"csv:{tmp_path / 't.csv'}"), "id")
    assert [id for id in after if id in before] == before and before != sorted(before)


def test_text_as_it_stands(tmp_path):
    rows = 'text\tlabel\n  é "quoted" \t10\n"\t9\n"a ""b"", c"\t9\n'
    (tmp_path / "t.tsv").write_bytes(b"\xef\xbb\xbf" + rows.encode())  # with the mark that some editors write
    task = load(f"csv:{tmp_path / 't.tsv'}")
    assert task.classes == ("9", "10")
    texts = {id: found["text"] for id, (_, found) in content(task).items()}
    assert texts == {"00000000": '  é "quoted" ', "00000001": '"', "00000002": '"a ""b"", c"'}
    sizes = dict(zip(column(task, "id"), column(task, "bytes"), strict=True))
    assert sizes == {"00000000": 14, "00000001": 1, "00000002": 12}


def test_pairs_by_their_usual_names_or_by_config(tmp_path):
    (tmp_path / "t.csv").write_text(
        "id,premise,hypothesis,label\nx,It rains.,It is wet.,yes\ny,It rains.,All dry.,no\n"
    )
    task = load(f"csv:{tmp_path / 't.csv'}")
    assert task.pairs and task.classes == ("no", "yes")
    assert content(task)["x"] == (1, {"text": "It rains.", "text_pair": "It is wet."})
    turned = load(f"csv:{tmp_path / 't.csv'}", text=("hypothesis", "premise"))
    assert content(turned)["x"] == (1, {"text": "It is wet.", "text_pair": "It rains."})
    alone = load(f"csv:{tmp_path / 't.csv'}", text=("hypothesis",))
    assert content(alone)["y"] == (0, {"text": "All dry."})
    assert len({task.fingerprint, turned.fingerprint, alone.fingerprint}) == 3


def test_several_labels_in_three_forms(tmp_path):
    expected = {"00000000": (0, 2), "00000001": (), "00000002": (1,)}
    (tmp_path / "names.csv").write_text("text,label\nx,red|blue\ny,\nz,green\n")
    (tmp_path / "flags.csv").write_text("text,blue,green,red\nx,1,0,True\ny,0,0,0.0\nz,0,1,false\n")
    table = pa.table({"text": ["x", "y", "z"], "label": [["red", "blue"], [], ["green"]]})
    pq.write_table(table, tmp_path / "lists.parquet")
    found = [
        load(f"csv:{tmp_path / 'names.csv'}", problem="multi_label"),
        load(f"csv:{tmp_path / 'flags.csv'}", problem="multi_label", label=("blue", "green", "red")),
        load(f"parquet:{tmp_path / 'lists.parquet'}", problem="multi_label"),
    ]
    for task in found:
        assert task.classes == ("blue", "green", "red")
        assert {id: tuple(label) for id, (label, _) in content(task).items()} == expected
    assert len({task.fingerprint for task in found}) == 1


def test_regression_on_several_columns(tmp_path):
    (tmp_path / "t.csv").write_text("text,x,y\na,1,-2.5e-1\nb,0.1,3\n")
    task = load(f"csv:{tmp_path / 't.csv'}", problem="regression", label=("x", "y"))
    assert task.classes == ("x", "y")
    assert {id: label for id, (label, _) in content(task).items()} == {
        "00000000": [1.0, -0.25],
        "00000001": [0.1, 3.0],
    }


def test_parquet_with_images_in_it(shapes, tmp_path):
    files = [shapes / "disc" / "00.png", shapes / "square" / "00.png"]
    data = [file.read_bytes() for file in files]
    stored = {
        "bytes": data,
        "struct": [{"bytes": data[0], "path": None}, {"bytes": None, "path": str(files[1])}],
        "paths": [str(file) for file in files],
    }
    for name, values in stored.items():
        pq.write_table(pa.table({"image": values, "label": [1.0, 0.0]}), tmp_path / f"{name}.parquet")
        task = load(f"parquet:{tmp_path / name}.parquet")
        assert task.classes == ("0", "1")
        assert {label: found["image"] for label, found in content(task).values()} == {1: data[0], 0: data[1]}


def test_hugging_face_sets_on_disk(shapes, tmp_path, capsys):
    import datasets

    file = shapes / "disc" / "00.png"
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["square", "disc"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"])),
            "value": datasets.Value("float32"),
            "words": datasets.Value("string"),
            "name": datasets.Value("string"),
        }
    )
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}],
        "kind": [1, 0],
        "tags": [[2, 0], []],
        "value": [0.5, 2.0],
        "words": ["a", "b"],
        "name": ["ann", "bob"],
    }
    train = datasets.Dataset.from_dict(rows, features=features)
    test = datasets.Dataset.from_dict(rows | {"kind": [-1, -1]}, features=features)
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "hf"))
    spec = f"hf:{tmp_path / 'hf'}"
    task = load(spec, label=("kind",))
    assert task.classes == ("square", "disc") and list(task.bases) == ["train"]
    assert "test has no labels, and is left out" in capsys.readouterr().out
    assert content(task) == {
        "00000000": (1, {"image": file.read_bytes()}),
        "00000001": (0, {"image": file.read_bytes()}),
    }
    several = load(spec, label=("tags",), problem="multi_label")
    assert several.classes == ("x", "y", "z") and list(several.bases) == ["train", "test"]
    assert content(several)["00000000"][0] == [0, 2]
    one = load(spec, label=("kind",), problem="multi_label")
    assert {id: label for id, (label, _) in content(one).items()} == {"00000000": [1], "00000001": [0]}
    both = load(spec, label=("kind", "value"), problem="regression")
    assert both.classes == ("kind", "value") and content(both)["00000000"][0] == [1.0, 0.5]
    values = load(spec, label=("value",), problem="regression")
    assert content(values)["00000001"][0] == [2.0]
    named = load(spec, text=("words",), label=("name",))
    assert named.classes == ("ann", "bob") and content(named)["00000001"] == (1, {"text": "b"})
    with pytest.raises(InputError, match=r"has the labels kind, tags: set task.label to one of them"):
        load(spec)
    train.to_parquet(str(tmp_path / "files" / "train.parquet"))
    assert load(f"hf:{tmp_path / 'files'}", label=("kind",)).fingerprint == task.fingerprint


def test_hugging_face_sets_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for spec, message in {f"hf:{tmp_path / 'empty'}": "cannot be loaded", "hf:/none/such": "no such folder"}.items():
        with pytest.raises(InputError, match=message) as error:
            load(spec)
        assert str(error.value).startswith(spec) and "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs Hugging Face's datasets: pip install 'tljax\[hf\]'"):
        load("hf:org/name")


def prepared() -> Path:
    """The one prepared folder in the cache."""
    (folder,) = (path for path in (cache_dir() / "datasets").iterdir() if path.is_dir())
    return folder


def test_tfds_reads_what_is_prepared(shapes, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(record_parts, "MAX_EXAMPLES", 10)
    task = load(f"folder:{shapes}", pack=True)
    builder = tfds.builder_from_directory(prepared())
    assert builder.info.splits["train"].shard_lengths == [10, 10, 4]
    assert builder.info.features["label"].names == ["disc", "square"]
    source = builder.as_data_source(split="train")
    for place in (0, 11, 23):
        id = source[place]["id"].decode()
        assert id == column(task, "id")[place] and source[place]["label"] == column(task, "label")[place]
        np.testing.assert_array_equal(source[place]["image"], np.asarray(Image.open(shapes / id)))
    rows = [23, 0, 11]
    assert [one["image"] for one in task.bases["train"].records.__getitems__(rows)] == [
        (shapes / column(task, "id")[row]).read_bytes() for row in rows
    ]
    assert sorted(path.name for path in prepared().iterdir()) == [
        "dataset_info.json",
        "features.json",
        "index-train.parquet",
        "label.labels.txt",
        "sealed.json",
        "task.json",
        *(f"tljax-train.array_record-{i:05d}-of-00003" for i in range(3)),
    ]


PREPARING = """
import os, signal, sys, time
from tljax.config.schema import TaskConfig
from tljax.data import registry
from tljax.data.records import record_parts as parts
from tljax.data.transforms import image
parts.MAX_EXAMPLES = 5
write, calls, decode = parts._write_records, [], image.decode
def dying(path, records):
    calls.append(path)
    if len(calls) == 3 and sys.argv[2] == "die":
        write(path, records[:2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, records)
def slow(data, name, *rest):
    print("decoded", name, flush=True)
    time.sleep(0.1 if sys.argv[2] == "slowly" else 0)
    return decode(data, name, *rest)
parts._write_records, image.decode = dying, slow
task = registry.load(TaskConfig(dataset=sys.argv[1], pack=True))
print("fingerprint", task.fingerprint)
"""


def _start(dataset: str, how: str, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARING, dataset, how]
    environment = os.environ | {"TLJAX_CACHE": str(cache)}
    pipe = subprocess.PIPE
    return forks.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_process_is_gone_on_with_to_the_same_bytes(shapes, tmp_path):
    dataset = f"folder:{shapes}"
    killed = _start(dataset, "die", tmp_path / "killed")
    killed.communicate(timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "killed" / "datasets").glob("*.partial")
    assert sorted(path.suffix for path in partial.iterdir()) == [
        *2 * [".array_record"],
        *2 * [".json"],
        *2 * [".parquet"],
        ".tmp",
    ]
    runs = [_start(dataset, "on", tmp_path / cache) for cache in ("killed", "whole")]
    said = [run.communicate(timeout=PATIENCE)[0] for run in runs]
    assert [out.count("decoded") for out in said] == [14, 24]  # ten were finished
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1] != ""
    files = [
        {
            path.relative_to(tmp_path / cache): path.read_bytes()
            for path in (tmp_path / cache).rglob("*")
            if path.is_file()
        }
        for cache in ("killed", "whole")
    ]
    assert files[0] == files[1] and len(files[0]) == 5 + 6 + 1  # shards, what describes them, the lock


def test_processes_that_want_one_set_make_it_once(shapes, tmp_path):
    runs = [_start(f"folder:{shapes}", "slowly", tmp_path / "shared") for _ in range(3)]
    said = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sum(out.count("decoded") for out, _ in said) == 24
    assert len({out.splitlines()[-1] for out, _ in said}) == 1
    assert all(error.count("waiting for another process, which makes ") <= 1 for _, error in said)
    makers = [out.count("decoded") > 0 for out, _ in said]
    assert makers.count(True) == 1


def test_a_full_disk_keeps_what_is_finished(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(record_parts, "MAX_EXAMPLES", 10)
    monkeypatch.setattr(image, "decode", counted := _Counted(image.decode))
    usage, asked = shutil.disk_usage, []

    def full(path):
        asked.append(path)
        return usage(path)._replace(free=10_000 if len(asked) == 2 else 2**40)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(InputError, match=r"\.partial: the disk is full: 0 MB are free, and this split needs about 0;"):
        load(f"folder:{shapes}")
    counted.names.clear()
    load(f"folder:{shapes}")
    assert len(counted.names) == 14  # ten were finished


def test_damage_leaves_no_half_made_folder(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(record_parts, "MAX_EXAMPLES", 5)
    root = shutil.copytree(shapes, tmp_path / "shapes")
    last = column(load(f"folder:{root}"), "id")[-1]
    (root / last).write_bytes(b"")
    shutil.rmtree(cache_dir())
    with pytest.raises(InputError, match=last):
        load(f"folder:{root}")
    assert [path.suffix for path in (cache_dir() / "datasets").iterdir()] == [".lock"]


class _Counted:
    def __init__(self, function):
        self.function, self.names = function, []

    def __call__(self, *arguments):  # from several threads
        self.names.append(arguments[1])
        return self.function(*arguments)


def test_what_cannot_be_used_is_skipped_counted_and_listed(tmp_path, capsys):
    root = make_folder(tmp_path / "data", per_class=5)
    (root / "disc" / "01.png").write_bytes(b"no image")
    (root / "square" / "03.png").unlink()
    (root / "square" / "03.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"square/03\.png: cannot be read"):
        load(f"folder:{root}")
    task = load(f"folder:{root}", on_error="skip")
    assert collections.Counter(column(task, "label")) == {0: 4, 1: 4}
    assert [(one["split"], one["id"]) for one in task.skipped] == [("train", "disc/01.png"), ("train", "square/03.png")]
    assert "disc/01.png: not a readable image" in task.skipped[0]["reason"]
    out = " ".join(capsys.readouterr().out.split())
    assert f"folder:{root}: 2 of 10 examples are left out: disc/01.png, square/03.png ({prepared()}/task.json)" in out
    again = load(f"folder:{root}", on_error="skip")
    assert again.skipped == task.skipped and again.fingerprint == task.fingerprint
    assert json.loads((prepared() / "task.json").read_text())["skipped"] == list(task.skipped)


def _source(**changes) -> Source:
    items = [Item(str(i), i % 2, lambda: "text") for i in range(4)]
    return Source(
        **{"key": "k", "kind": "text", "problem": "single_label", "classes": ("a", "b")}
        | {"splits": {"train": items}}
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "a")}, "class name 'a' is empty, has a line break, or is there twice"),
        ({"splits": {"train-clean": [Item("0", 0, str)]}}, "split 'train-clean': its name may have letters"),
        ({"splits": {"train": []}}, "split 'train' has no example"),
        ({"splits": {"train": [Item("0", 0, str), Item("0", 1, str)]}}, "two examples of train have the id '0'"),
        ({"splits": {"train": [Item("0", 2, str)]}}, "0: label 2 is none of the classes 0 to 1"),
        ({"splits": {"train": [Item("0", 0, lambda: "\udc80")]}}, "0: the text is not valid UTF-8"),
        ({"problem": "multi_label", "splits": {"train": [Item("0", (0, 5), str)]}}, "0: label (0, 5) is none of"),
        (
            {"problem": "regression", "splits": {"train": [Item("0", 1.0, str)]}},
            "0: label 1.0 is not 2 finite number(s)",
        ),
        (
            {"problem": "regression", "splits": {"train": [Item("0", (1.0, math.inf), str)]}},
            "0: label (1.0, inf) is not 2 finite number(s)",
        ),
    ],
)
def test_sources_that_cannot_be_prepared(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        array_records.prepare(_source(**changes), "made", tmp_path / "made", "stop", pack=True)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("made")] in ([], ["made.lock"])


def test_a_prepared_folder_that_was_damaged_is_made_again(shapes, capfd):
    whole = load(f"folder:{shapes}", pack=True)
    folder = prepared()
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    shard = folder / "tljax-train.array_record-00000-of-00001"
    damages = {shard.name: None, "task.json": b"{", "index-train.parquet": content["index-train.parquet"][:-9]}
    for name, damage in damages.items():
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(damage)
        assert load(f"folder:{shapes}", pack=True).fingerprint == whole.fingerprint
        assert f"{folder} was damaged ({name}" in capfd.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    # Of a shard only the size is looked at; its own checksums tell when a record is read.
    shard.write_bytes(shard.read_bytes()[:1000] + bytes(shard.stat().st_size - 1000))
    with pytest.raises(InputError, match=r"train, record 0: damaged .*; run it again, and it is prepared again"):
        load(f"folder:{shapes}", pack=True).bases["train"].records.__getitems__([0])
    load(f"folder:{shapes}", pack=True).bases["train"].records.__getitems__([0])
