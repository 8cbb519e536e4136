"""`--config=FILE[:arg] --config.key=value …` on the command line, read by ml_collections."""

import argparse
import ast
import contextlib
import functools
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tljax.config.choices import FREE_SECTIONS
from tljax.config.schema import Experiment, default
from tljax.config.serialization import check_key, empty
from tljax.config.synonyms import advice
from tljax.config.tuning import ARGUMENT_SECTIONS, argument_kinds
from tljax.errors import InputError, printable


def parse_experiment(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """Returns the experiment that a verb's arguments describe, and the verb's own options.

    Args:
        parser: of the verb's own options.
        arguments: of the command line.

    Raises:
        InputError: no such config file or key (the nearest is named), or a value of another type.
    """
    parser.usage = f"{parser.prog} --config=FILE[:arg] [--config.key=value …] [options]"
    parser.epilog = "every key of the config and what it means: tljax/config/schema.py and tuning.py"
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith("--config"):
            raise _unknown(argument, parser.prog)
    file, arg = config_file(rest)
    if (folder := str(Path(file).absolute().parent)) not in sys.path:
        sys.path.append(folder)  # last: a file there must not stand in for a package of its name
    config = _read(["--config=" + ":".join(filter(None, (file, arg)))])
    rest = [argument for argument in rest if not argument.startswith("--config=")]
    texts = {key: text for key, _, text in (flag.removeprefix("--config.").partition("=") for flag in rest)}
    _add_arguments(config, texts)
    for key in texts:
        check_key(config, key)
    return Experiment.from_config(_read(rest, config)), options


def _unknown(argument: str, program: str) -> InputError:
    """Returns the error for an argument that a verb does not take: a key of the config may be meant."""
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    with contextlib.suppress(InputError):
        check_key(default(), name)
        return InputError(f"unknown argument {argument}: it is --config.{name}=VALUE")
    if text := advice(name):
        return InputError(f"unknown argument {argument}: {text}; keys are given as --config.KEY=VALUE")
    return InputError(f"unknown argument {argument}; see {program} --help")


def _add_arguments(config: ConfigDict, texts: Mapping[str, str]) -> None:
    """Gives a file's config a key for each argument of its strategy, its optimizer and its schedule.

    A flag may name another strategy than the file does. The file's arguments belong to its own: those that the flag's
    does not take are left out.

    Args:
        config: the file's.
        texts: what flags say, by dotted key.
    """
    config.unlock()
    for key, place in ARGUMENT_SECTIONS.items():
        section = _section(config, place)
        part, _, field = key.partition(".")
        name = texts.get(key) or _section(config, part).get(field) or default()[part][field]
        kinds = argument_kinds(key, name)
        if key in texts:
            for argument in set(section) - set(kinds) - {"strategy", "group_rates"}:
                del section[argument]
        # A flag for what is no argument has a key as well, so that the error can say what there is.
        asked = [text.removeprefix(f"{place}.") for text in texts if text.startswith(f"{place}.")]
        kinds = dict.fromkeys((each for each in asked if "." not in each and each not in section), str) | kinds
        for argument, kind in kinds.items():
            _declare(section, argument, kind)


def _declare(section: ConfigDict, argument: str, kind: Any) -> None:
    """Gives a section a key of a type, unless it has it; an integer that a file gave for a float becomes that."""
    value, typed = section.get(argument), empty(kind)
    is_whole = type(value) is int and typed.get_type() is float and abs(value) < 2**53
    if value is None or is_whole:
        if argument in section:
            del section[argument]  # and with it its type
        section[argument] = float(value) if is_whole else typed


def _section(config: ConfigDict, path: str) -> ConfigDict:
    """Returns a section of a config, added where it is not there."""
    for part in path.split("."):
        if part not in config:
            config[part] = ConfigDict()
        config = config[part]
    return config


def config_file(arguments: list[str]) -> tuple[str, str]:
    """Returns the file that `--config=FILE[:arg]` names, and its argument, empty if there is none.

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
    """Returns the value of each `--config.KEY=VALUE` by its dotted key, and the verb's own options.

    Args:
        parser: of the verb's own options.
        arguments: of the command line; the config that they are of is elsewhere.

    Raises:
        InputError: there is no such key (the nearest is named), or its value is of another type.
    """
    options, rest = parser.parse_known_args(arguments)
    keys = []
    for argument in rest:
        if not argument.startswith("--config."):
            raise _unknown(argument, parser.prog)
        key = argument.removeprefix("--config.").split("=")[0]
        keys.append(next((section for section in FREE_SECTIONS if key.startswith(f"{section}.")), key))
        check_key(default(), keys[-1])
    config = _read(rest, default()).to_dict()
    return {key: functools.reduce(lambda tree, part: tree[part], key.split("."), config) for key in keys}, options


def _read(arguments: list[str], config: ConfigDict | None = None) -> ConfigDict:
    """Returns the config of the file that the arguments name, or `config`, with the values that they give."""
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
