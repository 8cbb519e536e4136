"""The command line: `tljax VERB …`, or `python -m tljax VERB …`."""

import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import tljax
from tljax import streams
from tljax.program import VERBS, program


def main(arguments: list[str]) -> int:
    """Runs a verb; returns the exit status.

    0: done. 1: some of the inputs could not be read, and were named. 2: input that cannot be used. 75: told to stop
    before the end, with all saved, so that the same command goes on; or another process of the run was lost. 128 + a
    signal's number: stopped at once. 141: whoever read stdout has gone, and nothing else was wanted. What stdout and
    stderr do not take (a closed pipe, a full disk) changes nothing else.
    """
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(f"usage: {program()} VERB [options]\n")
        print("\n".join(f"  {name:12}{text}" for name, text in VERBS.items()))
        print(f"\n{program()} VERB --help says more; --version prints the version.")
        return 0
    if verb == "--version":
        print(f"tljax {tljax.__version__}")
        return 0
    from tljax.distributed.preemption import SAVED, Stopped
    from tljax.errors import InputError
    from tljax.io import compilation_cache
    from tljax.io.download.fetch import cache_dir

    if verb not in VERBS:
        print(f"error: no verb {verb!r}; there are: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    # A device tuned for games and a CPU warn alike; what matters here comes as an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    compilation_cache.keep(cache_dir() / "compiled")
    try:
        # Imported only now, so that --help need not wait for jax.
        module = _imported(f"tljax.cli.{verb}")
        compilation_cache.check_programs()
        return module.main(arguments[1:]) or 0
    except InputError as error:
        print(f"error: {streams.in_one_line(str(error))}", file=sys.stderr)
        return 2
    except streams.Closed:
        return streams.CLOSED
    except Stopped as stopped:
        print(f"{stopped}: the same command goes on", file=sys.stderr)
        return SAVED
    except KeyboardInterrupt:
        return 130


def _imported(name: str) -> ModuleType:
    """Imports a module, and sets all that it imports apart from what is searched for garbage.

    It is a quarter of a million objects that stay; to search them again and again took an eighth of a start.
    """
    if name in sys.modules:  # then what is garbage by now would stay, too
        return sys.modules[name]
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def with_huge_pages(path: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> None:
    """Starts this process anew, under the same id, so that Linux gives it memory in pages of 2 MB, not of 4 kB.

    XLA on a CPU takes the working memory of a step anew in each step, and the faults of its small pages were 15% of
    the time of a ViT-S step. glibc can ask for large ones, but reads its tunables only as a process starts. Nothing is
    done where the kernel gives them to all or to none, or where the user has set GLIBC_TUNABLES.
    """
    if "GLIBC_TUNABLES" not in os.environ and path.exists() and "[madvise]" in path.read_text():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def entry() -> int:
    """Runs the command line that this process was started with; returns the exit status."""
    with_huge_pages()
    if program() == "tljax" and not sys.flags.safe_path:
        sys.path[0] = ""  # the working directory, where `python -m` looks first, not the script's folder
    streams.install()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
