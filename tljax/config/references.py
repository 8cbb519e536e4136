"""Objects that a config names: rows of our own tables, and a user's own as `package.module:name`.

A user's module is looked up on `sys.path`, to which a command line adds the folder of its config file, and a workdir
the folders in which its run had them.
"""

import difflib
import hashlib
import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from tljax.config.ranges import coerce, no_such, shown
from tljax.config.synonyms import advice
from tljax.errors import InputError
from tljax.streams import in_one_line

_REFERENCE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
# Tables of what has arguments in a config. Their modules stand above this one, and are imported at the first look-up.
_TABLES = {"tuning.strategy": "tljax.tuning.recipes:SIGNATURES"}

_beside_configs: set[str] = set()  # folders that `look_in` was told of
_of_runs: dict[str, tuple[str, str]] = {}  # module -> the folder where a run had it, and the SHA-256 of its source


def look_in(folder: str | Path) -> None:
    """Has modules looked up in the folder of a config, too; last, so that no file there stands in for a package."""
    folder = os.path.abspath(folder)  # noqa: PTH100 (links stay)
    _beside_configs.add(folder)
    if folder not in sys.path:
        sys.path.append(folder)


def folders_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the folder of the module of each reference that lies in the folder of a config; imports nothing."""
    folders = {}
    for name in names:
        spec = getattr(sys.modules.get(name.partition(":")[0].partition(".")[0]), "__spec__", None)
        for location in (spec.submodule_search_locations or [spec.origin or ""]) if spec else ():
            if (folder := str(Path(location).parent)) in _beside_configs:
                folders[name] = folder
    return folders


def look_where_a_run_did(folders: Mapping[str, str], sources: Mapping[str, str]) -> None:
    """Has modules looked up where a run had them.

    Args:
        folders: of references, as `folders_of` gave them.
        sources: the SHA-256 of the source of each.

    Raises:
        InputError: another run has another module of the same name elsewhere; a process has one of them.
    """
    for name, folder in folders.items():
        module = name.partition(":")[0]
        place, source = _of_runs.setdefault(module, (folder, sources[name]))
        if place != folder and source != sources[name]:
            raise InputError(f"{module} of {folder} is another than that of {place}: ask for their runs one by one")
        look_in(folder)


def is_reference(name: Any) -> bool:
    """Returns whether a name is `package.module:name`, not one of a table."""
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def resolve_reference(name: str, kind: str) -> Any:
    """Returns the object that `package.module:name` names, importing its module.

    Args:
        name: the reference; after the colon there may be dots, too (`module:Class.method`).
        kind: the config's key that has it, for errors.

    Raises:
        InputError: there is no such module or attribute (the nearest is named), or the module cannot be imported.
    """
    module_name, _, attributes = name.partition(":")
    try:
        value = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does at its import
        raise error_in(name, kind, error) from error
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            hint = _nearest(attribute, (public for public in dir(value) if not public.startswith("_")))
            raise InputError(f"{kind}={name}: {module_name} has no {attribute}{hint}")
        value = getattr(value, attribute)
    return value


def look_up(name: str, kind: str) -> Any:
    """Returns what a key's value names: a row of the key's own table, or what a reference stands for.

    Raises:
        InputError: there is neither such a row nor such an object.
    """
    if is_reference(name):
        value = resolve_reference(name, kind)
        if not callable(value):
            raise InputError(f"{kind}={name}: it is {shown(value)}, and no function or class")
        return value
    module, _, table = _TABLES[kind].partition(":")
    rows = getattr(importlib.import_module(module), table)
    if name not in rows:
        raise InputError(no_such(kind, name, rows))
    return rows[name]


def parameters_of(function: Callable[..., Any], supplied: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function that a config gives, by name.

    Args:
        function: its first parameter is given by tljax, unless it is a class, or has none but keyword-only ones.
        supplied: names of further parameters that tljax gives.
    """
    parameters = list(_signature(function).parameters.values())
    if not inspect.isclass(function) and parameters and parameters[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        del parameters[0]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind not in variadic and parameter.name not in supplied
    }


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's parameters that `ranges.coerce` can convert a value to, by name."""
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except Exception:  # an object without annotations, or with one that names nothing
        return {}
    return {name: kind for name, kind in hints.items() if name != "return" and _can_convert(kind)}


def check_arguments(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    where: str,
    name: str = "",
    supplied: Collection[str] = (),
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Returns a function's arguments from a config, converted to the types of its signature.

    Args:
        function: what takes them, as for `parameters_of`.
        arguments: values by name.
        where: the section that has them, for errors.
        name: what errors call the function; by default `module:name`.
        supplied: names of parameters that tljax gives, but for the first.
        beside: other keys of the section, which a misspelt argument may have meant.

    Raises:
        InputError: an argument that the function does not take (the nearest is named), one that is missing, or a value
            that its annotation does not allow.
    """
    name = name or f"{function.__module__}:{function.__qualname__}"
    parameters, kinds = parameters_of(function, supplied), kinds_of(function)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in _signature(function).parameters.values())
    for key in arguments:
        if not (key in parameters or (takes_any and isinstance(key, str))):
            taken = ", ".join(parameters) or "nothing"
            text = advice(key) if where == "tuning" and isinstance(key, str) else ""
            hint = f": {text}" if text else _nearest(key, [*parameters, *beside])
            raise InputError(f"{name} takes no {where}.{key}{hint}; it takes: {taken}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise InputError(f"{where}.{key} is required by {name}{_call(function)}")
    return {
        key: coerce(value, kinds[key], f"{where}.{key}") if key in kinds else value for key, value in arguments.items()
    }


def source_hash(value: Any) -> str:
    """Returns the SHA-256 of the file that a resolved object is written in; empty where it has none, as in C."""
    value = inspect.unwrap(getattr(value, "func", value))
    try:
        file = inspect.getsourcefile(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))
    except TypeError:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def error_in(name: str, kind: str, error: Exception) -> InputError:
    """Returns what to say of an exception that came out of a module or function of a user's own.

    Args:
        name: the reference.
        kind: the config's key that has it.
        error: the exception.
    """
    module = name.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        parent, _, last = error.name.rpartition(".")
        path = getattr(sys.modules.get(parent), "__path__", ()) if parent else None
        hint = _nearest(last, (each.name for each in pkgutil.iter_modules(path)))
        was = f" (the run had it in {_of_runs[module][0]})" if module in _of_runs else ""
        advice = "put its file beside the config, or its folder on PYTHONPATH"
        if ".py:" in name:
            advice = f"give {name.replace('.py:', ':', 1)}, without .py"
        return InputError(f"{kind}={name}: no module {error.name}{hint}: {advice}{was}")
    lines = traceback.extract_tb(error.__traceback__)
    place = f"{lines[-1].filename}, line {lines[-1].lineno}: " if lines else ""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}: "
    return InputError(in_one_line(f"{kind}={name}: {place}{type(error).__name__}: {error}"))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # of C, which says nothing of its own
        return inspect.Signature([inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)])


def _call(function: Callable[..., Any]) -> str:
    """Returns a function's parameters as they are written, without annotations."""
    signature = _signature(function)
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _can_convert(kind: Any) -> bool:
    """Returns whether `ranges.coerce` knows a type, which a user's annotation may be."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _can_convert(kind.__origin__) and all(hasattr(constraint, "check") for constraint in kind.__metadata__)
    if origin in (types.UnionType, typing.Union):
        return len(parts) == 2 and parts[1] is types.NoneType and _can_convert(parts[0])
    if origin is tuple:
        return all(part is Ellipsis or _can_convert(part) for part in parts)
    return kind in (bool, int, float, str, tuple)
