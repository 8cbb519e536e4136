"""What becomes of faults at the edges: nothing may be silently wrong, and no fault may end in a traceback.

    .venv/bin/python benchmarks/faults.py [--seed=0] [--scale=1.0] [--only=storage,bits,configs,values,weights,paths]

storage: a system call on a workdir fails, once or from then on, in a run of six steps. It ends with the bits of a run
that nothing happened to, or with one line, after which the same command does.
bits: a bit flips in a file that is kept to be used again. What is read is what was written, or one line.
configs: a key of a foreign JSON beside weights is removed, or has another type, size or shape. It is read, or refused
in a line that names the file.
values: a key of a config has an odd value. It is accepted, or refused in a line that names the key.
weights: a file lies about what it is. It is refused in one line.
paths: a run lies in a folder of an odd name. It is found again.

Exit status 1 if anything was wrong or a traceback; those are printed.
"""

import argparse
import builtins
import contextlib
import errno
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import config_fuzz, flips, test_paths, test_sealed
from tests.conftest import GOLDEN, ROOT, TINY, make_folder, make_table, tiny_run
from tests.weights import hostile
from tljax import console
from tljax.config.ranges import shown
from tljax.config.schema import Experiment
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.io import storage
from tljax.io.download.fetch import cache_dir
from tljax.models.registry import BACKBONES
from tljax.training.trainer import train
from tljax.weights.configs import import_config

COUNTS = {"storage": 100, "bits": 160, "configs": 150, "values": 500, "weights": 110, "paths": 40}
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE)
ODD_TEXTS = (
    *(
        "a[1]",
        "b\\c",
        "x*y",
        "q?z",
        "{a}",
        "100%",
        "#h",
        " ",
        "ü",
        "日本",
        "-d",
        "'",
        '"',
        ".",
        "\n",
        "\t",
        "~",
        "$HOME",
    ),
    *(";", "&"),
)
# What a key of a foreign JSON may hold that its library would not have written there.
ODD_JSON: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**30, 0.5, -0.5, 1e308, "", "x", "bicubic", "\x1b[31m", "a" * 10_000),
    *([], [0], [1, 2, 3], [[1]], ["a"], {}, {"a": 1}, {"height": 0, "width": 0}, {"shortest_edge": -1}),
)


def outcome(act: Callable[[], Any], expected: Callable[[Any], bool] = lambda _: True) -> tuple[str, str]:
    """Returns `survived`, `named`, `wrong` or `traceback`, and what was said."""
    try:
        return ("survived", "") if expected(act()) else ("wrong", "another result, and not a word")
    except InputError as error:
        message = str(error)
        return ("named", message) if len(message.splitlines()) == 1 else ("traceback", f"several lines: {message!r}")
    except Exception:
        return "traceback", traceback.format_exc()


def storage_faults(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Fails the nth call that a run makes to a disk, and lets it go on from what it left."""
    pictures = make_folder(folder / "data")
    run = tiny_run(f"folder:{pictures}", tuning__strategy="full", eval_every=2, log_every=1, **SPLITS)

    def trained(workdir: Path) -> dict[str, Any]:
        return _result(train(run.experiment, workdir, prepared=run))

    expected = trained(folder / "whole")
    with _Failing(folder / "counted") as counted:
        trained(folder / "counted")
    for number in range(count):
        workdir, lasting, error = folder / f"{number}", rng.random() < 0.5, rng.choice(ERRORS)
        attempt = functools.partial(trained, workdir)
        with _Failing(workdir, rng.randrange(counted.count), lasting, error) as failing:
            kind, message = outcome(attempt, expected.__eq__)
        if kind == "named":  # and nothing is lost by it
            again, then = outcome(attempt, expected.__eq__)
            if again != "survived":
                kind, message = "wrong" if again == "named" else again, f"{message}; then {then}"
        yield f"{errno.errorcode[error]} at {failing.place}{' and after' * lasting}", kind, message
        shutil.rmtree(workdir, ignore_errors=True)


SPLITS = {"task__train": "train[:16]", "task__validation": "train[16:20]", "task__test": "train[20:]", "cache": "off"}


def _result(result: dict[str, Any]) -> dict[str, Any]:
    """What of a result is a function of config and seed."""
    return {key: result[key] for key in ("splits", "steps", "frozen_digest_after")}


class _Failing(contextlib.AbstractContextManager):
    """Within, the nth call of some that write below a folder fails, and with `lasting` each after it."""

    NAMES = ("open", "replace", "rename", "unlink", "mkdir", "link", "fsync", "truncate")

    def __init__(self, folder: Path, nth: int | None = None, lasting: bool = False, error: int = errno.EIO):
        self._folder, self._nth, self._lasting, self._error = os.fspath(folder), nth, lasting, error
        self.count, self.place = 0, ""

    def __enter__(self) -> "_Failing":
        self._originals = {name: getattr(os, name) for name in self.NAMES}
        for name, original in self._originals.items():
            setattr(os, name, self._wrapped(name, original))
        self._open = io.open
        builtins.open = io.open = self._wrapped("open", io.open)
        return self

    def __exit__(self, *error: object) -> None:
        builtins.open = io.open = self._open
        for name, original in self._originals.items():
            setattr(os, name, original)

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._counts(name, arguments, options):
                self.count += 1
                if self._nth is not None and (
                    self.count - 1 == self._nth or (self._lasting and self.count > self._nth)
                ):
                    self.place = self.place or name
                    raise OSError(self._error, os.strerror(self._error), str(arguments[0]))
            return original(*arguments, **options)

        return call

    def _counts(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Whether a call is one that writes to a run's folder, and not to the data or the whole run."""
        first = arguments[0] if arguments else ""
        if name == "fsync":
            return True
        if not isinstance(first, str | os.PathLike) or not os.fspath(first).startswith(self._folder):
            return False
        mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
        return (
            name != "open"
            or (isinstance(mode, str) and mode[:1] in "wxa")
            or (isinstance(mode, int) and bool(mode & 3))
        )


def bits(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Flips bits in all kinds of files that are kept."""
    pictures, words = make_folder(folder / "pictures"), folder / "vocab.txt"
    words.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "film", "good", "bad")))
    kinds: dict[str, Callable[[], Callable[[], Any]]] = {
        "datasets": lambda: test_sealed.prepared(pictures),
        "decoded": lambda: test_sealed.decoded(pictures),
        "tokens": lambda: test_sealed.tokens(make_table(folder / "t.csv"), words),
        "features": lambda: test_sealed.prefix(pictures),
        "backbones": test_sealed.converted,
    }
    for kind, make in kinds.items():
        read = make()
        read()
        outcomes = flips.flip_and_read(
            cache_dir() / kind, read, -(-count // len(kinds)), np.random.default_rng(rng.getrandbits(32))
        )
        for name, times in (
            ("survived", outcomes["same"]),
            ("named", outcomes["named"]),
            ("wrong", outcomes["wrong"] + outcomes["stuck"]),
            ("traceback", outcomes["long"]),
        ):
            yield from ((kind, name, "see above") for _ in range(times))


def odd_configs(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Changes a key of what libraries write beside weights."""
    sources = sorted((ROOT / "tests" / "cases" / "foreign_configs").glob("*.json"))
    sources += sorted(GOLDEN.glob("*/config.json")) + sorted(GOLDEN.glob("*/preprocessor_config.json"))
    for number in range(count):
        source, place = rng.choice(sources), folder / f"{number}"
        content = json.loads(source.read_text())
        inside = rng.choice([content, *(value for value in content.values() if isinstance(value, dict) and value)])
        key, value = rng.choice([*inside, "a_key_of_tomorrow"]), rng.choice(ODD_JSON)
        if rng.random() < 0.15:
            inside.pop(key, None)
        else:
            inside[key] = value
        place.mkdir()
        kind, message = outcome(functools.partial(_read_config, place, source.name, content))
        if kind == "named" and ".json" not in message:
            kind = "wrong"
        yield f"{source.parent.name}/{source.name}: {key}={value!r:.60}", kind, message


def _read_config(place: Path, name: str, content: dict[str, Any]) -> None:
    """Reads a folder with one file of a library's; what else it needs there is as it should be."""
    if "tokenizer" in name:
        (place / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
        (place / "tokenizer_config.json").write_text(json.dumps(content))
        Tokenizer(place)(["A a"], 8)
        return
    shutil.copyfile(GOLDEN / "hf_dinov2_reg" / "config.json", place / "config.json")
    whole = name == "config.json" or "architecture" in content
    (place / ("config.json" if whole else "preprocessor_config.json")).write_text(json.dumps(content))
    import_config.read(place, str(place))


def odd_values(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Gives keys of a config values that mean nothing."""
    base = config_fuzz.base()
    for key, overrides in config_fuzz.odd_values(rng.getrandbits(32), count):
        message = config_fuzz.outcome(key, overrides, Experiment.from_config, base)
        wrong = "wrong" if "does not name" in message else "traceback"
        kind = {"accepted": "survived", "refused": "named"}.get(message, wrong)
        yield f"{key}={shown(overrides[key])}", kind, message


def hostile_weights(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Reads weight files that lie."""
    for path in hostile.make(folder, count, rng.getrandbits(32)):
        kind, message = outcome(functools.partial(hostile.read, path))
        yield path.name, "wrong" if kind == "survived" else kind, message or "was read"


def odd_paths(folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Puts runs into folders of odd names, one in another."""
    for number in range(count):
        name = "".join(rng.choices(ODD_TEXTS, k=rng.randint(1, 4))).strip("/") or "-"
        inside = folder / f"{number}"
        inside.mkdir()
        write_and_read = test_paths.test_a_run_is_found_again_in_a_folder_of_whatever_name
        yield repr(name), *outcome(functools.partial(write_and_read, inside, name))


KINDS: dict[str, Callable[[Path, int, random.Random], Iterator[tuple[str, str, str]]]] = {
    "storage": storage_faults,
    "bits": bits,
    "configs": odd_configs,
    "values": odd_values,
    "weights": hostile_weights,
    "paths": odd_paths,
}


def main() -> int:
    """Prints a table of outcomes by kind; returns 1 if any was wrong or a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas between")
    options = parser.parse_args()
    rows, bad = [], 0
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLJAX_CACHE", f"{name}/cache")
        patch.setattr(storage, "PAUSES", (0.0, 0.0))
        for network, module in TINY.items():
            patch.setitem(BACKBONES, network, module)
        jax.config.update("jax_enable_compilation_cache", False)
        for kind in options.only.split(","):
            folder, outcomes = Path(name) / kind, Counter[str]()
            folder.mkdir()
            count = max(1, round(options.scale * COUNTS[kind]))
            with console.quiet(), contextlib.redirect_stderr(io.StringIO()):
                results = list(KINDS[kind](folder, count, random.Random(options.seed)))
            for what, result, message in results:
                outcomes[result] += 1
                if result in ("wrong", "traceback"):
                    print(f"{kind}: {what}: {result}: {message}", file=sys.stderr)
            bad += outcomes["wrong"] + outcomes["traceback"]
            rows.append(
                (
                    kind,
                    sum(outcomes.values()),
                    *(outcomes[each] for each in ("survived", "named", "wrong", "traceback")),
                )
            )
    print("| kind | faults | survived | named | silently wrong | traceback |\n|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
