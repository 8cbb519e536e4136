"""The processes of a run: how they find each other, what one does for all, what all agree upon."""

import argparse
import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tljax import console, flag_types, sharding
from tljax.errors import InputError

LOST = 69  # the exit status, sysexits.h's EX_UNAVAILABLE: another process is gone, the same command goes on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `joined`."""
    told = "Slurm's srun, Open MPI's mpirun and TPU slices on GKE are seen by themselves"
    group = parser.add_argument_group("several processes of one run", told)
    where = "where the first process is to be reached; auto: where Slurm, Open MPI, a TPU slice or Kubernetes say"
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help=where)
    group.add_argument("--num-processes", type=flag_types.positive, default=1, metavar="N")
    group.add_argument("--process-id", type=flag_types.count, default=0, metavar="I", help="of this one, from 0")
    waits = "seconds in which all processes must have come (default: 300)"
    group.add_argument("--join-timeout", type=flag_types.positive, default=300, metavar="S", help=waits)


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[None]:
    """Within, this process is one of those that the flags or the launcher tell of; only the first of them prints.

    To be entered before any device is touched. Where another process is lost, this one ends, with `LOST`: none can go
    on by itself, and what they would say to each other at the end would never come.

    Raises:
        InputError: there is no word of where the others are. Where they do not come in time, the process ends with 2.
    """
    _join(options)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        told = f"process {jax.process_index()} of {jax.process_count()} lost another, or its device ({_line(error)})"
        print(f"error: {told}: the same command goes on from the last step saved", file=sys.stderr, flush=True)
        os._exit(LOST)


def _join(options: argparse.Namespace) -> None:
    if not options.coordinator and options.num_processes > 1:
        raise InputError("--num-processes needs --coordinator=HOST:PORT, the same in each process")
    if not (options.coordinator or _launched()):
        return
    where = {}
    if options.coordinator not in ("", "auto"):
        where = {"coordinator_address": options.coordinator, "num_processes": options.num_processes}
        where["process_id"] = options.process_id
        _check(options)
    # Its handler would take SIGTERM away from `stopping`, which all processes agree upon.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs in flight at the same time would meet those of the other processes in any order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    what = f"process {options.process_id} of {options.num_processes}" if where else "this process"
    at = f", at {options.coordinator} where the first of them is to be reached" if where else ""

    def late() -> None:
        told = f"{what} waited {options.join_timeout} s for the others{at}: are all started, and do they reach it?"
        print(f"error: {told} --join-timeout=S waits longer", file=sys.stderr, flush=True)
        os._exit(2)

    # By itself, jax aborts the process when its time is over.
    watch = threading.Timer(options.join_timeout, late)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**where, initialization_timeout=options.join_timeout + 60)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise InputError(f"{what} cannot join the others{at} ({_line(error)})") from error
    finally:
        watch.cancel()
    console.console.quiet = jax.process_index() > 0


def _launched() -> bool:
    """Whether a launcher started this process as one of several, and left word of the others that jax finds."""
    told = os.environ
    by_slurm = int(told.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    by_mpi = "OMPI_MCA_orte_hnp_uri" in told and int(told.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return by_slurm or by_mpi or "," in told.get("TPU_WORKER_HOSTNAMES", "")


def _check(options: argparse.Namespace) -> None:
    host, _, port = options.coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"--coordinator={options.coordinator} is neither HOST:PORT nor auto")
    if not 0 <= options.process_id < options.num_processes:
        few = f"--num-processes={options.num_processes}"
        raise InputError(f"--process-id={options.process_id} is none of {few}: they count from 0")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def part() -> tuple[int, int]:
    """The number of this process, and of how many."""
    return jax.process_index(), jax.process_count()


def on_first(make: Callable[[], Any]) -> Any:
    """What `make` returns (JSON) in the first process, which alone calls it, to all of them.

    Raises:
        InputError: the one that it raised there, in each.
    """
    if jax.process_count() == 1:
        return make()
    told = {}
    if is_first():
        try:
            told = {"found": make()}
        except InputError as error:
            told = {"error": str(error)}
    content = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = content if is_first() else np.zeros(size, np.uint8)
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
    if "error" in told:
        raise InputError(told["error"])
    return told["found"]


def anyone(wanted: bool) -> bool:
    """Whether any process wants something; all wait for each other. For each step there is `Agreement`."""
    return wanted if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(wanted))))


class Agreement:
    """Lets all processes learn at the same step that one of them wants something, two steps after it said so.

    So late, nobody waits for a device that still computes.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
        self._asked: deque[jax.Array] = deque()

    def __call__(self, wanted: bool) -> bool:
        """To be called once a step, in each process; with one process, `wanted` itself."""
        if jax.process_count() == 1:
            return wanted
        mine = np.full(len(self._mesh.local_devices), wanted)
        laid = sharding.put_batch(mine, self._mesh)
        self._asked.append(self._any(laid))
        return len(self._asked) > 2 and bool(self._asked.popleft())
