"""Compiled programs on disk: a second start, a resumed run or another seed need not wait for the compiler again.

jax keeps them (`jax.experimental.compilation_cache`), and with a limit on their size it also locks the folder, writes
the time of its latest use beside each program, and evicts what was used least recently. But it writes in place: of a
process that is killed meanwhile, or runs out of disk, a part of a program stays, which no later one can read and jax
never replaces. The time is written after the program, so a program without one is such a part.
"""

import contextlib
import os
import sys
import warnings
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

MOST_BYTES = 4 * 10**9
_folder: Path | None = None  # that `keep` was told

# Options with which XLA's CPU compiler leaves `lax.optimization_barrier` where it is until all is fused.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def keep(folder: Path) -> None:
    """Makes jax keep programs in a folder, and mends what others left there.

    Whoever sets JAX_COMPILATION_CACHE_DIR has a folder of their own, of which nothing is changed.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    global _folder
    _folder = folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # However soon it was compiled: a start has some ten small programs beside the large ones.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST_BYTES)) != "-1":
        mend(folder)
    if "jax" in sys.modules:  # which has read its variables by now
        config = sys.modules["jax"].config
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
            config.update(name, type(getattr(config, name) or "")(os.environ[name.upper()]))
        config.update("jax_compilation_cache_max_size", int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]))


def check_programs() -> None:
    """Makes jax keep a checksum at the end of each program in the folder of `keep`, and compile a damaged one again.

    What jax writes has none: of a flipped bit it may make a program that computes something else.
    """
    if _folder is None or "jax" not in sys.modules:
        return
    try:
        from jax._src import compilation_cache
        from jax._src.lru_cache import LRUCache

        make = compilation_cache.get_file_cache
    except (ImportError, AttributeError):  # jax's own affair, which another version may arrange otherwise
        return

    class Checked(LRUCache):
        def get(self, key: str) -> bytes | None:
            value = super().get(key)
            if value is None or zlib.crc32(value[:-4]) == int.from_bytes(value[-4:], "little"):
                return value and value[:-4]
            (self.path / f"{key}-cache").unlink(missing_ok=True)
            return None

        def put(self, key: str, value: bytes) -> None:
            super().put(key, value + zlib.crc32(value).to_bytes(4, "little"))

    def checked(path: str) -> tuple[LRUCache, str] | None:
        if Path(path) != _folder:
            return make(path)
        return Checked(path, max_size=int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"])), path

    compilation_cache.get_file_cache = checked


def mend(folder: Path, timeout: float = 10.0) -> list[str]:
    """Removes programs that were not written to their end; returns their names.

    Only of a folder in which all programs were written with a limit on their size. Others may be using it.
    """
    if not folder.is_dir():
        return []
    removed = []
    # jax's own lock, under which it writes; where another process holds it for so many seconds, the next start looks.
    with contextlib.suppress(Timeout), FileLock(folder / ".lockfile", timeout=timeout):
        names = {path.name for path in folder.iterdir()}
        for name in sorted(names):
            program = name.removesuffix("-cache")
            if program != name and f"{program}-atime" not in names:
                (folder / name).unlink()
                removed.append(program)
    return removed


def wide_vectors() -> dict[str, int]:
    """Returns options with which XLA's CPU compiler uses vectors of 512 bits, where a processor has them.

    For programs with much of an optimizer's roots and divisions: AdamW's of a head take 0.7 of the time on a Zen 5,
    and a network's whole step 0.99. None where XLA_FLAGS says something of them.
    """
    return {} if "vector_width" in os.environ.get("XLA_FLAGS", "") else {"xla_cpu_prefer_vector_width": 512}


def quick_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, bool | str] | None:
    """Returns options with which XLA takes a CPU's matrix products from oneDNN, where that is known to be faster.

    That is on Intel's processors, where a ViT's features take 0.83 of the time. It is for programs that are compiled
    soon and run long: jaxlib cannot write such ones to disk, so that each start waits for the compiler. None elsewhere,
    and where XLA_FLAGS says something of oneDNN.
    """
    known = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text()
    if not known or "onednn" in os.environ.get("XLA_FLAGS", ""):
        return None
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .*onednn")
    kind = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    return {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_fusion_type": kind}
