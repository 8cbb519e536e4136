"""Objects of a user's own that a config or a flag names as `package.module:name`."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable
from typing import Any

from tljax.errors import InputError, message_of

_REFERENCE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def is_reference(name: Any) -> bool:
    """Returns whether a name has the form `package.module:name`."""
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def resolve_reference(name: str, kind: str) -> Any:
    """Returns the object that `package.module:name` names, importing its module.

    Args:
        name: the reference.
        kind: the key or flag that has it, for errors.

    Raises:
        InputError: there is no such module or attribute (the nearest is named), or the module cannot be imported.
    """
    module_name, _, attributes = name.partition(":")
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = _nearest(error.name or "", (module.name for module in pkgutil.iter_modules()))
        raise InputError(f"{kind}={name}: no module {error.name}{hint}") from error
    except Exception as error:  # whatever a user's module does at its import
        raise InputError(f"{kind}={name}: {type(error).__name__}: {message_of(error)}") from error
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            raise InputError(f"{kind}={name}: {module_name} has no {attribute}{_nearest(attribute, dir(value))}")
        value = getattr(value, attribute)
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
