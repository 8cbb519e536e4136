"""`--config=FILE[:arg] --config.key=value …` on the command line, read by ml_collections."""

import argparse
import ast
import contextlib
import functools
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tljax.config.choices import FREE_SECTIONS
from tljax.config.schema import Experiment, default
from tljax.config.serialization import unknown_key
from tljax.errors import InputError, printable
from tljax.tuning import phases


def parse_experiment(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The experiment that a verb's arguments describe, and the verb's own options.

    Raises:
        InputError: no such config file or key (the nearest is named), or a value of another type.
    """
    parser.usage = f"{parser.prog} --config=FILE[:arg] [--config.key=value …] [options]"
    parser.epilog = "every key of the config and what it means: tljax/config/schema.py"
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith("--config"):
            raise InputError(f"unknown argument {argument}; see {parser.prog} --help")
    defaults = _read(["--config=" + ":".join(filter(None, config_file(rest)))])
    for argument in rest:
        if argument.startswith("--config."):
            _check_key(defaults, argument.removeprefix("--config.").split("=")[0])
    config = _read(rest)
    given = {argument.split("=")[0] for argument in rest}
    if "--config.tuning.strategy" in given:
        # The file's arguments belong to the file's strategy, not to the one named here.
        for name in set(config.tuning) - {"strategy", "group_rates", *phases.arguments_of(config.tuning.strategy)}:
            if f"--config.tuning.{name}" not in given:
                config.tuning[name] = None
    return Experiment.from_config(config), options


def config_file(arguments: list[str]) -> tuple[str, str]:
    """The file that `--config=FILE[:arg]` names, and its argument, empty if there is none.

    Raises:
        InputError: it names none that exists.
    """
    named = next((argument for argument in reversed(arguments) if argument.startswith("--config=")), None)
    if named is None:
        raise InputError("give --config=FILE, for example --config=configs/quickstart.py")
    file, _, arg = named.removeprefix("--config=").partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config={file}: no such file")
    return file, arg


def parse_overrides(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """The value of each `--config.KEY=VALUE` by its dotted key, for a config that is elsewhere; and the verb's options.

    Raises:
        InputError: there is no such key (the nearest is named), or its value is of another type.
    """
    options, rest = parser.parse_known_args(arguments)
    keys = []
    for argument in rest:
        if not argument.startswith("--config."):
            raise InputError(f"unknown argument {argument}; see {parser.prog} --help")
        key = argument.removeprefix("--config.").split("=")[0]
        keys.append(next((section for section in FREE_SECTIONS if key.startswith(f"{section}.")), key))
        _check_key(default(), keys[-1])
    config = _read(rest, default()).to_dict()
    return {key: functools.reduce(lambda tree, part: tree[part], key.split("."), config) for key in keys}, options


def _read(arguments: list[str], config: ConfigDict | None = None) -> ConfigDict:
    """Of the file that the arguments name, or of `config`, with the values that they give."""
    # A registry of our own: absl's global one would keep the first config of the process.
    values = flags.FlagValues()
    own = [argument for argument in arguments if _is_free(argument)]
    argv = ["tljax", *(argument for argument in arguments if argument not in own)]
    if config is None:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    else:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    file = next((argument for argument in arguments if argument.startswith("--config=")), "").partition("=")[2]
    try:
        with config_faults(file.partition(":")[0]):
            values(argv)
            config = values["config"].value
            for argument in own:
                key, _, text = argument.removeprefix("--config.").partition("=")
                section, _, name = key.rpartition(".")
                with config.unlocked():
                    functools.reduce(lambda tree, part: tree[part], section.split("."), config)[name] = _literal(text)
            return config
    except flags.Error as error:
        raise InputError(printable(str(error))) from error


def _is_free(argument: str) -> bool:
    return any(argument.startswith(f"--config.{section}.") for section in FREE_SECTIONS)


def _literal(text: str) -> Any:
    """Returns the Python value that a text is, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextlib.contextmanager
def config_faults(file: str) -> Iterator[None]:
    """Turns an exception that comes out of a config file into an InputError that names its line there."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        root = error  # absl wraps what a config raised
        while root.__context__:
            root = root.__context__
        if isinstance(root, InputError):
            raise InputError(str(root)) from error
        if fault := _fault_in(file, root):
            raise fault from error
        raise


def _fault_in(file: str, error: BaseException) -> InputError | None:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == Path(file).absolute()]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).absolute() == Path(file).absolute():
        lines = [error.lineno]
    if not (file and lines):
        return None
    return InputError(f"{file}, line {lines[-1]}: {type(error).__name__}: {printable(str(error))}")


def _check_key(config: ConfigDict, key: str) -> None:
    here, path = config, "config"
    for part in key.split("."):
        if path.removeprefix("config.") in FREE_SECTIONS:
            return
        if not isinstance(here, ConfigDict) or part not in here:
            known = here.keys() if isinstance(here, ConfigDict) else []
            raise unknown_key(part, path, known)
        here, path = here[part], f"{path}.{part}"
