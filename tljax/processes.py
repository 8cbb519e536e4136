"""The processes of a run: how they find each other, what one does for all, what all agree upon."""

import argparse
import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tljax import console, sharding
from tljax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `join`."""
    group = parser.add_argument_group("several processes of one run", "under Slurm's srun they are found")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process is to be reached")
    group.add_argument("--num-processes", type=int, default=1, metavar="N")
    group.add_argument("--process-id", type=int, default=0, metavar="I", help="of this one, from 0")


def join(options: argparse.Namespace) -> None:
    """Joins the other processes of a run, as the flags or Slurm say; before any device is touched.

    Only the first of them prints.

    Raises:
        InputError: there is no word of where they are.
    """
    if options.num_processes > 1 and not options.coordinator:
        raise InputError("--num-processes needs --coordinator=HOST:PORT, the same in each process")
    if not options.coordinator and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    # Its handler would take SIGTERM away from `stopping`, which all processes agree upon.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs in flight at the same time would meet those of the other processes in any order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    else:
        jax.distributed.initialize()
    console.console.quiet = jax.process_index() > 0


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
