"""`module.path:name`, which stands for a thing of the user's own wherever a registered name may stand."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tljax.errors import InputError


def is_reference(name: str) -> bool:
    """Tells whether a name has the form `module.path:name`."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) is not None


def resolve_reference(name: str, kind: str) -> Any:
    """Imports what a reference names: a module on Python's path, or beside the config file.

    Args:
        name: `module.path:name`.
        kind: the key that has it, for errors.

    Raises:
        InputError: there is no such module, it fails when it is imported, or it has no such name.
    """
    path, _, attribute = name.partition(":")
    try:
        value = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise InputError(f"{kind}={name}: {path} imports {error.name}, which is not installed") from error
        raise InputError(f"{kind}={name}: no module {path}, neither installed nor beside the config file") from error
    except Exception as error:
        raise InputError(f"{kind}={name}: {path} fails: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise InputError(f"{kind}={name}: {path} has no {part}{_nearest(part, vars(value))}")
        value = getattr(value, part)
    return value


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Checks keyword arguments against a function's signature.

    Args:
        function: what is to be called, with its first arguments by position.
        arguments: those that it is to be called with by name.
        where: what errors call their section, as `tuning`.

    Raises:
        InputError: one is not in the signature (the nearest is named), or one without a default is missing.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    own = {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    name = getattr(function, "__name__", str(function))
    for key in arguments:
        if key not in own and not takes_any:
            raise InputError(f"{where}.{key} is no argument of {name}{_nearest(key, own)}")
    for key, parameter in own.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise InputError(f"{where}.{key} is required by {name}{inspect.signature(function)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the nearest of the public names."""
    near = difflib.get_close_matches(name, [other for other in known if not other.startswith("_")], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
