"""Config files: the user's own, and by name those that come with tljax."""

import contextlib
import difflib
import functools
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from tljax import console
from tljax.config.references import look_in
from tljax.errors import InputError
from tljax.streams import in_one_line

# In what is installed they stand in the package, in a checkout beside it.
_FOLDERS = [parent / "configs" for parent in list(Path(__file__).parents)[1:3]]


def shipped() -> dict[str, Path]:
    """Returns the configs that come with tljax: name -> file."""
    folder = next(filter(Path.is_dir, _FOLDERS))
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def locate(name: str) -> tuple[str, str]:
    """Returns the file that `FILE[:arg]` or `NAME[:arg]` means, and the argument, empty if there is none.

    A file of that name, or with `.py` added, in the working directory goes before what comes with tljax, and that is
    said on stderr. From now on, modules are looked up beside the file, too; of what comes with tljax, in the working
    directory.

    Raises:
        InputError: there is neither; the nearest name is given.
    """
    file, _, arg = name.partition(":")
    known = shipped()
    for path in filter(Path.is_file, map(Path, (file, f"{file}.py"))):
        if file in known and not path.samefile(known[file]):
            _warn(f"--config={file}: the file {path} here, not the config of that name that comes with tljax")
        look_in(path.parent)
        return str(path), arg
    if file not in known:
        stem = Path(file).stem
        near = [stem] if stem in known else difflib.get_close_matches(stem, known, n=3, cutoff=0.4) or known
        names = ", ".join(f"--config={each}" for each in near)
        raise InputError(f"--config={file}: no such file, nor a config of that name; with tljax come {names}")
    look_in(Path())  # where a file of that name would be
    return str(known[file]), arg


@functools.cache
def _warn(message: str) -> None:
    """Says a thing once."""
    with console.on_stderr():
        console.console.print(message)


def load(name: str) -> ConfigDict:
    """Returns the config that `FILE[:arg]` or `NAME[:arg]` gives.

    Raises:
        InputError: there is no such file or name, or the file is wrong; its line is named.
    """
    file, arg = locate(name)
    with config_faults(file):
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise InputError(f"{file} has no function get_config(), which returns the config")
        return get_config(arg) if arg else get_config()


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
    return InputError(f"{file}, line {lines[-1]}: {type(error).__name__}: {in_one_line(str(error))}")
