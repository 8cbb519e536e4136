"""`--config=FILE[:arg] --config.key=value …` on the command line, read by ml_collections."""

import argparse
import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tljax.config import schema
from tljax.config.files import config_faults, locate, shipped
from tljax.config.schema import Experiment, default
from tljax.config.serialization import check_key, empty
from tljax.config.synonyms import advice
from tljax.config.tuning import ARGUMENT_SECTIONS, argument_kinds
from tljax.errors import InputError
from tljax.streams import in_one_line


def parse_experiment(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """Returns the experiment that a verb's arguments describe, and the verb's own options.

    Args:
        parser: of the verb's own options.
        arguments: of the command line.

    Raises:
        InputError: no such config file or key (the nearest is named), or a value of another type.
    """
    parser.usage = f"{parser.prog} --config=FILE[:arg] [--config.key=value …] [options]"
    parser.epilog = f"every key of the config and what it means: {schema.__file__}, and tuning.py beside it"
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith("--config"):
            raise _unknown(argument, parser.prog)
    file, arg = config_file(rest)
    config = _read(["--config=" + ":".join(filter(None, (file, arg)))])
    rest = [argument for argument in rest if not argument.startswith("--config=")]
    texts = _texts(rest)
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
    hint = f": data are --config.task.dataset=folder:{argument}" if Path(argument).is_dir() else ""
    return InputError(f"unknown argument {argument}{hint}; see {program} --help")


def _add_arguments(config: ConfigDict, texts: Mapping[str, str]) -> None:
    """Gives a file's config a key for each argument that a flag gives to what the config names.

    A flag may name another strategy than the file does, or another data set. The file's arguments belong to its own:
    those that the flag's does not take are left out.

    Args:
        config: the file's.
        texts: what flags say, by dotted key.
    """
    config.unlock()
    for key, place in ARGUMENT_SECTIONS.items():
        section, file_name = _section(config, place), _value(config, key)
        name = texts.get(key) or file_name or _value(default(), key)
        kinds = argument_kinds(key, name)
        if key in texts and name != file_name:
            for argument in set(section) - set(kinds) - {"strategy", "group_rates"}:
                del section[argument]
        _declare(section, place, texts, kinds)


def _declare(section: ConfigDict, place: str, texts: Mapping[str, str], kinds: Mapping[str, Any]) -> None:
    """Gives a section a key for each argument that a flag sets there, of its type; of any where that is not known.

    What is no argument has a key as well, so that the error can say what there is.

    Args:
        section: of a config.
        place: its dotted key.
        texts: what flags say, by dotted key.
        kinds: the types of arguments that are known.
    """
    for argument in (text.removeprefix(f"{place}.") for text in texts if text.startswith(f"{place}.")):
        if "." not in argument and (argument in kinds or argument not in section):
            if argument in section:
                del section[argument]  # and with it its type: an integer in a file may stand for a float
            section[argument] = empty(kinds.get(argument, object))


def _section(config: ConfigDict, path: str) -> ConfigDict:
    """Returns a section of a config, added where it is not there."""
    for part in filter(None, path.split(".")):
        if part not in config:
            config[part] = ConfigDict()
        config = config[part]
    return config


def _value(config: ConfigDict, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return _section(config, section).get(name)


def config_file(arguments: list[str]) -> tuple[str, str]:
    """Returns the file that `--config=FILE[:arg]` or `--config=NAME[:arg]` means, and its argument (`locate`).

    Raises:
        InputError: there is none, or no such file.
    """
    argument = next((each for each in reversed(arguments) if each.startswith("--config=")), None)
    if argument is None:
        raise InputError(
            f"give --config=FILE, or a config that comes with tljax by its name: {', '.join(shipped())};"
            " with --config=default the --config.KEY=VALUE alone say what is to be done"
        )
    return locate(argument.removeprefix("--config="))


def parse_overrides(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """Returns the value of each `--config.KEY=VALUE` by its dotted key, and the verb's own options.

    Args:
        parser: of the verb's own options.
        arguments: of the command line; the config that they are of is elsewhere.

    Raises:
        InputError: there is no such key (the nearest is named), or its value is of another type.
    """
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith("--config."):
            raise _unknown(argument, parser.prog)
    config, texts = default(), _texts(rest)
    for place in ARGUMENT_SECTIONS.values():
        _declare(_section(config, place), place, texts, {})
    for key in texts:
        check_key(config, key)
    values = _read(rest, config).to_dict()
    # Arguments of a function are replaced as a whole.
    keys = [section if (section := key.rpartition(".")[0]).endswith("args") else key for key in texts]
    return {key: functools.reduce(lambda tree, part: tree[part], key.split("."), values) for key in keys}, options


def _texts(arguments: list[str]) -> dict[str, str]:
    """Returns what each `--config.KEY=VALUE` says, by its dotted key."""
    return {key: text for key, _, text in (flag.removeprefix("--config.").partition("=") for flag in arguments)}


def _read(arguments: list[str], config: ConfigDict | None = None) -> ConfigDict:
    """Returns the config of the file that the arguments name, or `config`, with the values that they give."""
    # A registry of our own: absl's global one would keep the first config of the process.
    values = flags.FlagValues()
    argv = ["tljax", *arguments]
    if config is None:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    else:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    file = next((argument for argument in arguments if argument.startswith("--config=")), "").partition("=")[2]
    try:
        with config_faults(file.partition(":")[0]):
            values(argv)
            return values["config"].value
    except flags.Error as error:
        raise InputError(in_one_line(str(error))) from error
