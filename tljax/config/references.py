"""Names of a user's own functions, `package.module:name`, wherever a registered name is taken."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tljax.errors import InputError, message_of

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_reference(name: str) -> bool:
    """Tells whether a name has the form `package.module:name`."""
    return bool(_FORM.fullmatch(name))


def resolve_reference(name: str, kind: str) -> Callable[..., Any]:
    """Imports a module and returns the function that a reference names.

    Args:
        name: as `package.module:name`.
        kind: what errors call it: `augmentation`.

    Raises:
        InputError: there is no such module or function (the nearest is named), or the module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{kind} {name!r}: {module_name} needs the module {error.name}, which is not there"
            ) from error
        parent, _, last = str(error.name).rpartition(".")
        paths = sys.modules[parent].__path__ if parent in sys.modules else None
        hint = _nearest(last, (module.name for module in pkgutil.iter_modules(paths)))
        raise InputError(f"{kind} {name!r}: no module {error.name} on the path{hint}") from error
    except Exception as error:
        raise InputError(f"{kind} {name!r}: {module_name} cannot be imported ({message_of(error)})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        hint = _nearest(attribute, (key for key, value in vars(module).items() if callable(value)))
        raise InputError(f"{kind} {name!r}: {module_name} has no function {attribute}{hint}")
    return function


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Checks the arguments that a config has for a function against the function's signature.

    Args:
        function: a user's.
        arguments: by name.
        where: the section of the config that has them.

    Raises:
        InputError: one is unknown (the nearest is named), or one without a default is missing.
    """
    signature = inspect.signature(function)
    parameters, called = signature.parameters.values(), f"{function.__module__}:{function.__name__}{signature}"
    named = [item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    if not any(item.kind is item.VAR_KEYWORD for item in parameters):
        for key in arguments:
            if key not in named:
                raise InputError(f"no {where}.{key}{_nearest(key, named)}: it is no argument of {called}")
    for item in parameters:
        if item.kind is item.KEYWORD_ONLY and item.default is item.empty and item.name not in arguments:
            raise InputError(f"{where}.{item.name} is required by {called}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
