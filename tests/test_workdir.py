"""The files of a run's folder: what is read from them however damaged they are, and lines of metrics, which stay."""

import json

import numpy as np
import pytest
from etils import epath

from tests.report import made
from tljax.checkpoints.workdir import Workdir
from tljax.errors import InputError
from tljax.io import arrays, checksums, storage


def _row(step: int, **more) -> dict:
    return {"step": step, "split": "train", "seconds": float(step), "input_seconds": 0.5, **more}


def _steps(folder: Workdir) -> list[int]:
    return [row["step"] for row in folder.metrics]


def test_rewinding_drops_later_lines_and_leaves_the_others_byte_for_byte(tmp_path):
    folder = Workdir(tmp_path)
    for step in (1, 2, 3):
        folder.append(_row(step, loss=float("nan")))
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    odd = lines[0].replace(b", ", b",  ")
    (tmp_path / "metrics.jsonl").write_bytes(odd + b"".join(lines[1:]))
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    assert folder.rewind(3) == (3.0, 0.5) and (tmp_path / "metrics.jsonl").stat().st_ino == before  # nothing to drop
    assert folder.rewind(2) == (2.0, 0.5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == odd + lines[1]
    assert folder.rewind(0) == (0.0, 0.0) and _steps(folder) == []


def test_a_torn_line_is_set_aside_and_said_and_the_lines_around_it_stay(tmp_path, capsys):
    folder, file, aside = Workdir(tmp_path), tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.torn"
    folder.append(_row(1))
    with file.open("a") as lines:
        lines.write('{"step": 2, "spl')
    folder.append(_row(2))
    assert _steps(folder) == [1, 2] and aside.read_text() == '{"step": 2, "spl\n'
    assert "what was not written to the end of its line is in metrics.jsonl.torn now" in " ".join(
        capsys.readouterr().out.split()
    )
    with file.open("a") as lines:  # as an earlier version left it: torn, and gone on with
        lines.write(f'{{"step{json.dumps(_row(3))}\n{json.dumps(_row(4))}\n{{"st')
    assert _steps(folder) == [1, 2, 4]
    folder.rewind(9)
    assert _steps(folder) == [1, 2, 4] and len(aside.read_text().splitlines()) == 3
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    folder, file = Workdir(tmp_path), tmp_path / "metrics.jsonl"
    folder.append(_row(1))
    file.write_bytes(file.read_bytes().rstrip())
    folder.append(_row(2))
    assert _steps(folder) == [1, 2]
    file.write_bytes(file.read_bytes().rstrip())
    folder.rewind(2)
    assert _steps(folder) == [1, 2] and not (tmp_path / "metrics.jsonl.torn").exists()


def test_a_bucket_that_does_not_answer_costs_no_line(tmp_path, monkeypatch):
    """It can only replace the file: what it held must be known, and is not nothing because it could not be read."""
    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    monkeypatch.setattr(storage, "PAUSES", ())
    monkeypatch.setattr(storage, "read", lambda path: path.read_bytes())
    folder = Workdir(tmp_path)
    folder.append(_row(1))
    folder.flush()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read", lambda path: (_ for _ in ()).throw(OSError(5, "gone")))
        folder.append(_row(2))
        with pytest.raises(InputError, match="gone"):
            folder.flush()
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1
    folder.flush()
    assert _steps(folder) == [1, 2]


DAMAGE = {
    "not JSON": b"{",
    "not text": b"\xff\xfe{}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "deep below a key": b'{"config": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "no keys": b"{}",
}
READS = {
    "config.json": lambda folder: folder.load(),
    "plan.json": lambda folder: folder.plan,
    "result.json": lambda folder: folder.result,
    "error.json": lambda folder: folder.error,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READS)
def test_damaged_json_is_one_line_with_its_file(tmp_path, name, damage):
    (tmp_path / name).write_bytes(DAMAGE[damage])
    with pytest.raises(InputError) as error:
        READS[name](Workdir(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


CHANGES = {
    "config.json": [
        *(("config", value) for value in (None, [], 3, "x")),
        *(("resolved", value) for value in (None, [], 3, "x", {})),
        *(("config.task", value) for value in (None, [], 3, "x")),
        *(("config.task.batch_size", value) for value in (None, [], "x", {})),
        *(("config.tuning.arguments", value) for value in (None, [1], 3)),
        *(("resolved.pretrained", value) for value in (None, [], 3, "x", {})),
        *(("resolved.classes", value) for value in (None, 3, "x", {})),
        *(("resolved.steps", value) for value in (None, [], "x")),
        ("resolved.preprocessing.size", "x"),
    ],
    "result.json": [
        *(("splits", value) for value in (None, [], 3)),
        *(("splits.test", value) for value in (None, [], 3)),
        *(("steps", value) for value in (None, "x", 1.5, True)),
        *(("wall_seconds", value) for value in (None, "x", {})),
        ("held", 3),
    ],
    "plan.json": [("steps", "x"), ("cost", []), ("frozen_digest", None), ("cached", "no")],
    "error.json": [("error", None), ("error", {})],
}


@pytest.mark.parametrize("name", CHANGES)
def test_json_of_another_shape_is_one_line_with_its_file_and_key(tmp_path, name):
    made.leave(tmp_path / "run", made.experiment(), {"test": made.hits(0.5, 20)})
    folder = Workdir(tmp_path / "run")
    folder.save_plan({"steps": 20, "cost": {}, "frozen_digest": "", "cached": False})
    if name == "error.json":
        folder.fail(InputError("x"))
    file = tmp_path / "run" / name
    whole = file.read_text()
    READS[name](folder)
    for key, value in CHANGES[name]:
        content = json.loads(whole)
        *sections, last = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
        file.write_text(json.dumps(content))
        with pytest.raises(InputError) as error:
            READS[name](folder)
        told = str(error.value)
        assert told.startswith(f"{file}: ") and last in told and "\n" not in told, (key, value, told)
    if name == "config.json":  # which may be of the right shape, and not what the run wrote
        content = json.loads(whole)
        content["resolved"]["classes"].reverse()
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match="config or resolved is not what the run wrote"):
            READS[name](folder)
    for key in [key for key, _ in CHANGES[name] if "." not in key and key != "held"]:
        file.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != key}))
        with pytest.raises(InputError, match=f"{file}: .*{key}"):
            READS[name](folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_manifests_and_facts_of_another_shape(tmp_path, damage):
    arrays.write(epath.Path(tmp_path / "1"), {"w": np.ones(3)}, {})
    arrays.save_tree(tmp_path / "2", {"w": np.ones(3)}, {"pretrained": {}, "ignored": [], "head": []})
    arrays.load_metadata(tmp_path / "2")
    (tmp_path / "1" / "manifest.json").write_bytes(DAMAGE[damage])
    (tmp_path / "2" / "tljax.json").write_bytes(DAMAGE[damage])
    assert arrays.wrong(epath.Path(tmp_path / "1")).startswith("manifest.json: ")
    with pytest.raises(InputError, match=r"2 is damaged \(tljax\.json has \d+ bytes, not 50\)"):
        arrays.load_metadata(tmp_path / "2")
    (tmp_path / "2" / checksums.NAME).unlink()  # as earlier versions left it
    with pytest.raises(InputError, match=r"2: not a folder made by `tljax convert` \(.*tljax\.json: damaged"):
        arrays.load_metadata(tmp_path / "2")
