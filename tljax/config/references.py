"""Names of a user's own code: `package.module:name`."""

import difflib
import importlib
import pkgutil
import re
from typing import Any

from tljax.errors import InputError, message_of


def is_reference(name: str) -> bool:
    """Returns whether a name has the form `package.module:name`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name) is not None


def resolve_reference(name: str, kind: str) -> Any:
    """Returns what `package.module:name` names.

    Args:
        name: the reference.
        kind: what it is to be, in a word, for errors.

    Raises:
        InputError: the module cannot be imported, or has no such attribute; the nearest name is given.
    """
    module_name, _, path = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        near = difflib.get_close_matches(module_name, [module.name for module in pkgutil.iter_modules()], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{kind} {name}: no module {error.name}{hint}") from error
    except Exception as error:
        raise InputError(
            f"{kind} {name}: {module_name} cannot be imported ({type(error).__name__}: {message_of(error)})"
        ) from error
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            near = difflib.get_close_matches(part, dir(target), n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise InputError(f"{kind} {name}: {module_name} has no {part}{hint}")
        target = getattr(target, part)
    return target
