"""What is installed: the wheel, the script `tljax`, configs by name, completion, the catalog as a list."""

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

import tljax
from tests.conftest import ROOT
from tljax.__main__ import main
from tljax.checkpoints.code import versions
from tljax.cli.flags import config_file
from tljax.config import files
from tljax.models.registry import BACKBONES
from tljax.reports.runs import read
from tljax.weights import listing
from tljax.weights.catalog import CATALOG

STRATEGY = '''
def every_nth(layout, *, stride: int):
    """Trains every `stride`-th block and the head."""
    return layout.by_group(lambda group: group == "head" or layout.groups.index(group) % stride == 0)
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the checkout, built as `pip wheel` does; of a copy, as setuptools leaves a folder `build` there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("tljax", "configs"):
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout")
    _pip("wheel", "--no-deps", f"--wheel-dir={folder}", folder / "checkout")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in, which is all that Python's path has of tljax."""
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", f"--target={folder}", wheel)
    return folder


def _pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _run(installed, cwd, *command, status=0):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_what_the_checkout_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path for path in (ROOT / "tljax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"tljax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in names if name.startswith("tljax/")} == expected
    assert {"tljax/py.typed", "tljax/__init__.pyi"} <= expected
    assert wheel.name.startswith(f"tljax-{tljax.__version__}-")


@pytest.mark.slow
def test_what_is_installed_runs_by_itself(installed, shapes, tiny_weights, tmp_path):
    python, script = (sys.executable, "-m", "tljax"), (installed / "bin" / "tljax",)
    assert "usage: python -m tljax VERB" in _run(installed, tmp_path, *python, "--help")
    assert "usage: tljax VERB" in _run(installed, tmp_path, *script, "--help")
    assert _run(installed, tmp_path, *script, "--version") == f"tljax {tljax.__version__}\n"
    assert _run(installed, tmp_path, *script, "configs") == _run(installed, tmp_path, *python, "configs")
    text = (ROOT / "configs" / "quickstart.py").read_text()
    assert _run(installed, tmp_path, *script, "configs", "quickstart") == text
    assert "block_0" in _run(installed, tmp_path, *script, "inspect", "--config=quickstart:scratch")
    (tmp_path / "my_strategies.py").write_text(STRATEGY)
    flags = [
        f"--config.task.dataset=folder:{shapes}",
        "--config.task.train=train[:16]",
        "--config.task.test=train[16:]",
    ]
    flags += [f"--config.backbone.weights={tiny_weights}", "--config.task.image_size=32", "--config.task.batch_size=8"]
    flags += ["--config.tuning.strategy=my_strategies:every_nth", "--config.tuning.stride=2", "--config.steps=2"]
    results = {}
    for run, start in (("a", script), ("b", python)):
        _run(installed, tmp_path, *start, "train", "--config=default", f"--workdir={run}", *flags)
        results[run] = json.loads((tmp_path / run / "result.json").read_text())
        settings = json.loads((tmp_path / run / "config.json").read_text())
        assert settings["versions"]["tljax"] == tljax.__version__ and settings["git_commit"] is None
        ((finished,), _) = read([str(tmp_path / run)])
        assert finished.started_by.startswith(f"{'tljax' if run == 'a' else 'python -m tljax'} train --config=default")
    assert results["a"]["steps"] == 2 and results["a"]["splits"] == results["b"]["splits"]
    _run(installed, tmp_path.parent, *script, "evaluate", f"--workdir={tmp_path / 'a'}")  # where no strategy lies


@pytest.mark.parametrize(
    "argument, expected", [("quickstart", ("quickstart", "")), ("transfer:pets", ("transfer", "pets"))]
)
def test_configs_go_by_name(argument, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file([f"--config={argument}"]) == (str(ROOT / "configs" / f"{expected[0]}.py"), expected[1])


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py"])
def test_a_file_goes_before_a_config_of_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("")
    files._warn.cache_clear()
    assert [config_file(["--config=quickstart:x"]) for _ in range(2)] == [(name, "x")] * 2
    message = f"--config=quickstart: the file {name} here, not the config of that name that comes with tljax\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("name", ["quikstart", "configs/quickstart.py", "configs/quick-start.py:scratch"])
def test_a_name_that_is_not_there_gets_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        tljax.InputError, match=r"no such file, nor a config .* come --config=quickstart(, |$)"
    ) as error:
        config_file([f"--config={name}"])
    assert "\n" not in str(error.value)


def test_configs_are_listed_and_printed(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert all(line.endswith((".", "?")) for line in lines)
    assert main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "quickstart.py").read_text()
    assert main(["configs", "quickstrt"]) == 2
    assert "did you mean quickstart?" in capsys.readouterr().err


def test_configs_are_loaded_by_name_in_python(tmp_path, monkeypatch):
    config = tljax.load_config("strategies:elpv_lora", seed=3, tuning__rank=2)
    assert (config.seed, config.tuning.strategy, config.tuning.rank) == (3, "lora", 2)
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("from beside import get_config")
    Path("beside.py").write_text("from tljax.config import default\n\ndef get_config():\n    return default()")
    assert tljax.load_config("own") == tljax.default_config()
    Path("wrong.py").write_text("\n1 / 0")
    with pytest.raises(tljax.InputError, match=r"wrong\.py, line 2: ZeroDivisionError"):
        tljax.load_config("wrong.py")
    Path("empty.py").write_text("")
    with pytest.raises(tljax.InputError, match=r"empty\.py has no function get_config\(\)"):
        tljax.load_config("empty")


@pytest.mark.parametrize(
    "start, expected",
    [
        ("/env/bin/tljax", "tljax"),
        ("/env/lib/tljax/__main__.py", "python -m tljax"),
        ("/env/lib/ipykernel_launcher.py", "python -m tljax"),
        ("-c", "python -m tljax"),
    ],
)
def test_commands_are_printed_as_this_one_was_started(start, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [start, "--help"])
    assert main(["--help"]) == 0
    assert f"usage: {expected} VERB" in capsys.readouterr().out
    assert main(["train", "--unknown"]) == 2
    assert f"see {expected} train --help" in capsys.readouterr().err


def test_the_version_is_that_of_runs(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tljax {tljax.__version__}\n"
    assert versions()["tljax"] == tljax.__version__


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash completes a line to, as readline would put it in place of what follows the last word break."""
    script = tmp_path_factory.mktemp("completion") / "tljax.bash"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["completion", "bash"]) == 0
    script.write_text(text.getvalue())

    def run(line):
        words = line.split(" ")
        code = f"source {script}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; COMP_CWORD={len(words) - 1}; "
        code += f'COMP_WORDS=({shlex.join(words)}); _tljax; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True)
        return done.stdout.split()

    return run


def test_bash_completes_verbs_flags_keys_and_values(complete):
    assert complete("tljax in") == ["inspect"] and "--version" in complete("tljax ")
    assert complete("tljax train --work") == ["--workdir="]
    assert complete("tljax evaluate --j") == ["--json"] and complete("tljax train --json") == []
    assert complete("tljax train --config.optim.lea") == ["--config.optim.learning_rate="]
    assert complete("tljax train --config.tuning.ran") == ["--config.tuning.rank="]
    assert complete("tljax train --config.tuning.strategy=lo") == ["lora"]
    assert {"lora", "lp_ft", "linear_probe", "full"} <= set(complete("tljax sweep --config.tuning.strategy="))
    assert complete("tljax train --config=quick") == ["quickstart"] and complete("tljax configs quick") == [
        "quickstart"
    ]
    assert complete("tljax train --workdir=a --config.head.bias=") == ["true", "false"]
    assert complete("tljax convert --to=ti") == ["timm"] and complete("tljax report --config") == []


def test_completion_knows_every_key(complete):
    keys = {f"--config.{key}=" for key, value in flatten_dict(tljax.default_config().to_dict(), sep=".").items()}
    offered = set(complete("tljax train --config."))
    assert keys <= offered
    names = {key.removeprefix("--config.").rstrip("=") for key in offered - keys}
    assert all(name.split(".")[0] == "tuning" or name.endswith("args") for name in names), names


@pytest.mark.parametrize("shell, program", [("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])])
def test_other_shells_can_read_their_scripts(shell, program, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "config.tuning.strategy" in script.read_text()
    if shutil.which(program[0]):
        subprocess.run([*program, script], check=True)


def test_the_catalog_is_listed(capsys):
    (row,) = tljax.list_models("vit_small_patch14.dinov2").to_dict("records")
    assert row["parameters"] == 22_056_192 and row["input"] == "224 px" and row["licence"] == "MIT"
    assert row["groups"] == ("stem", *(f"block_{i}" for i in range(12)), "norm")
    assert [*tljax.list_models("BERT-base-?ncased").input] == ["512 tokens"]
    assert main(["models", "small*dinov2"]) == 2
    assert main(["models", "*small*14.dinov2"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("error: no pretrained weights match 'small*dinov2': did you mean vit_small_patch14.dinov2")
    row = "vit_small_patch14.dinov2 22.1 M 224 px PyPI MIT stem, block_0 … block_11, norm"
    assert [" ".join(line.split()) for line in out.splitlines()] == ["name parameters input from licence groups", row]


def test_what_pip_brings_is_listed_first():
    origins = [*tljax.list_models()["from"]]
    assert origins == sorted(origins, key=["PyPI", "HF"].index) and {*origins} == {"PyPI", "HF"}


def test_the_catalog_is_listed_without_counting_parameters(monkeypatch):
    monkeypatch.setattr(listing, "count_parameters", None)
    assert len(tljax.list_models()) == len(CATALOG)


@pytest.mark.slow
def test_the_stored_counts_of_parameters_are_those_of_the_networks():
    with (ROOT / "tljax" / "weights" / "parameters.csv").open() as file:
        stored = {cells["backbone"]: int(cells["parameters"]) for cells in csv.DictReader(file)}
    # To trace all takes minutes: of networks whose blocks are alike two blocks tell, of the others some are counted.
    alike = [
        name for name in stored if "regnet" not in name and isinstance(getattr(BACKBONES[name], "depth", None), int)
    ]
    for name in alike:
        one, two = (listing.count_parameters(BACKBONES[name].clone(depth=depth)) for depth in (1, 2))
        assert stored[name] == one + (BACKBONES[name].depth - 1) * (two - one), name
    for name in [name for name in stored if name not in alike][::8]:
        assert stored[name] == listing.count_parameters(BACKBONES[name]), name


def test_importing_is_quick():
    code = "import time; begin = time.process_time(); import tljax; print(time.process_time() - begin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 0.3
