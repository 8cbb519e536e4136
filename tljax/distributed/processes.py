"""The processes of a run: how they find each other, what one does for all, what all agree upon."""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tljax import console
from tljax.config import flag_types
from tljax.distributed.mesh import put_batch, replicated
from tljax.distributed.peers import LOST, Lost, Peers
from tljax.distributed.preemption import SAVED, Stopped
from tljax.errors import InputError, message_of
from tljax.streams import in_one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `join` to a parser."""
    note = "Slurm's srun, Open MPI's mpirun and TPU slices on GKE are seen by themselves"
    group = parser.add_argument_group("several processes of one run", note)
    where = "where the first process is to be reached; auto: where Slurm, Open MPI, a TPU slice or Kubernetes say"
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help=where)
    group.add_argument("--num-processes", type=flag_types.positive, default=1, metavar="N")
    group.add_argument("--process-id", type=flag_types.count, default=0, metavar="I", help="of this one, from 0")
    waits = "seconds in which all processes must have come (default: 300)"
    group.add_argument("--join-timeout", type=flag_types.positive, default=300, metavar="S", help=waits)
    silent = "seconds after which a process that does not answer is given up; one that is killed at once (default: 30)"
    group.add_argument("--peer-timeout", type=flag_types.positive, default=30, metavar="S", help=silent)


@contextlib.contextmanager
def join(options: argparse.Namespace) -> Iterator[None]:
    """Joins the processes that the flags or the launcher tell of, for the block; only the lead prints.

    To be entered before any device is touched. Where another process is lost, this one ends, with `LOST`: none can go
    on by itself. Where another ends with an error that this one does not meet, it ends with that one's status.

    Raises:
        InputError: there is no word of where the others are. Where they do not come in time, the process ends with 2.
    """
    peers = _join(options)
    if peers is None:
        yield
        return
    try:
        yield
        jax.distributed.shutdown()  # where all wait for each other, and still watch each other
    except BaseException as error:
        _end(peers, error)
    peers.leave()


def _end(peers: Peers, error: BaseException) -> NoReturn:
    """Ends this process, which has met an error, without waiting for the others, who may not have; they are told.

    At its end Python would wait, in jax, for processes that themselves wait for what this one should compute.
    """
    name = f"process {peers.number} of {peers.count}"
    if isinstance(error, InputError):
        status, reason = 2, str(error)
    elif isinstance(error, Stopped):
        status, reason = SAVED, f"{error}: the same command goes on"
    elif isinstance(error, KeyboardInterrupt):
        status, reason = 130, "interrupted"
    else:
        peers.settle()
        status, reason = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            lost = f"{name} lost another, or its device ({message_of(error)})"
            status, reason = LOST, f"{lost}: the same command goes on from the last step saved"
        else:
            traceback.print_exception(error)
    if status != 1:
        prefix = "" if isinstance(error, Stopped) else "error: "
        print(prefix + in_one_line(reason), file=sys.stderr, flush=True)
    sys.stdout.flush()
    peers.leave(status, reason)
    os._exit(status)


def _join(options: argparse.Namespace) -> Peers | None:
    if not options.coordinator and options.num_processes > 1:
        raise InputError("--num-processes needs --coordinator=HOST:PORT, the same in each process")
    if not (options.coordinator or _launched()):
        return None
    if options.peer_timeout < 3:
        raise InputError(f"--peer-timeout={options.peer_timeout}: give 3 s or more")
    address, count, number, devices = _location(options)
    host, _, port = address.rpartition(":")
    # Its handler would take SIGTERM away from `PreemptionSignal`, which all processes agree upon.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs in flight at the same time would meet those of the other processes in any order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    process, at = f"process {number} of {count}", f", at {address} where the first of them is to be reached"
    peers = Peers(number, count, host.strip("[]"), int(port), options.peer_timeout)

    def late() -> None:
        missing = f" ({peers.missing})" if peers.missing else ""
        message = f"{process} waited {options.join_timeout} s for the others{at}{missing}: are all started, and do they"
        message += " reach it? --join-timeout=S waits longer"
        print(f"error: {message}", file=sys.stderr, flush=True)
        peers.refuse(message)
        os._exit(2)

    # By itself, jax aborts the process when its time is over.
    watch = threading.Timer(options.join_timeout, late)
    watch.daemon = True
    watch.start()
    try:
        coordinator = peers.meet()
        waits = {"initialization_timeout": options.join_timeout + 60, "heartbeat_timeout_seconds": 100}
        waits["heartbeat_timeout_seconds"] += options.peer_timeout  # which is to be over first
        jax.distributed.initialize(coordinator, count, number, devices, **waits)
    except Lost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{process} cannot join the others{at} ({message_of(error)})") from error
    finally:
        watch.cancel()
    console.console.quiet = number > 0
    return peers


def _location(options: argparse.Namespace) -> tuple[str, int, int, list[int] | None]:
    """Returns the first process's address, how many there are, which this is, and its devices if a launcher says."""
    if options.coordinator not in ("", "auto"):
        _check(options)
        return options.coordinator, options.num_processes, options.process_id, None
    from jax._src import clusters  # what jax.distributed.initialize itself asks, which does not tell

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        place = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            address, None, None, None, None, options.join_timeout
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise InputError(f"this process cannot join the others ({message_of(error)})") from error
    if None in place[:3]:
        flags = "give --coordinator=HOST:PORT, --num-processes=N and --process-id=I"
        raise InputError(f"this process cannot join the others: nothing here says where they are; {flags}")
    return place


def _launched() -> bool:
    """Returns whether a launcher started this process as one of several, and left word of the others for jax."""
    environment = os.environ
    by_slurm = int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    by_mpi = "OMPI_MCA_orte_hnp_uri" in environment and int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return by_slurm or by_mpi or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _check(options: argparse.Namespace) -> None:
    host, _, port = options.coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"--coordinator={options.coordinator} is neither HOST:PORT nor auto")
    if not 0 <= options.process_id < options.num_processes:
        option = f"--num-processes={options.num_processes}"
        raise InputError(f"--process-id={options.process_id} is none of {option}: they count from 0")


def is_lead() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def process_info() -> tuple[int, int]:
    """Returns the number of this process, and of how many."""
    return jax.process_index(), jax.process_count()


def on_lead(function: Callable[[], Any]) -> Any:
    """Calls `function` in the lead process alone; all processes return what it returned there (JSON).

    Raises:
        InputError: the one that it raised there, in each.
    """
    if jax.process_count() == 1:
        return function()
    message = {}
    if is_lead():
        try:
            message = {"result": function()}
        except InputError as error:
            message = {"error": str(error)}
    message = broadcast_from_lead(message)
    if "error" in message:
        raise InputError(message["error"])
    return message["result"]


def broadcast_from_lead(message: Any) -> Any:
    """Returns in each process the message (JSON) of the lead."""
    content = np.frombuffer(json.dumps(message).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = content if is_lead() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def agree(facts: Mapping[str, Any]) -> None:
    """Checks that all processes are about to do the same, by a hash of what each says of itself.

    Args:
        facts: JSON, of dicts by name.

    Raises:
        InputError: those of one differ from the first's; the same in each process, with what differs.
    """
    if jax.process_count() == 1:
        return
    content = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    different = np.flatnonzero((digests != digests[0]).any(axis=1))
    if not len(different):
        return
    longest = int(multihost_utils.process_allgather(np.int32(len(content))).max())
    padded = np.pad(content, (0, longest - len(content)), constant_values=ord(" "))
    contents = multihost_utils.process_allgather(padded)
    number = int(different[0])
    first, other = (
        flatten_dict(json.loads(contents[i].tobytes()), keep_empty_nodes=True, sep=".") for i in (0, number)
    )
    keys = [key for key in sorted(first | other) if first.get(key) != other.get(key)]
    shown = "; ".join(
        f"{key} is {first.get(key)!r} in process 0, {other.get(key)!r} in process {number}" for key in keys[:5]
    )
    more = f"; and {len(keys) - 5} more" if len(keys) > 5 else ""
    raise InputError(
        f"the processes of a run must be alike: {shown}{more}: start all with the same command, code and data"
    )


def source_digest() -> str:
    """Returns the SHA-256 of tljax's own source, in which two checkouts may differ that have the same version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is set in any process; all wait for each other. For each step there is `Agreement`."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Agreement:
    """Lets all processes learn at the same step that a flag is set in any of them, two steps after it was.

    So late, nobody waits for a device that still computes.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._asked: deque[jax.Array] = deque()

    def __call__(self, flag: bool) -> bool:
        """Returns whether a flag was set; to be called once a step in each process. With one process, `flag` itself."""
        if jax.process_count() == 1:
            return flag
        flags = np.full(len(self._mesh.local_devices), flag)
        self._asked.append(self._any(put_batch(flags, self._mesh)))
        return len(self._asked) > 2 and bool(self._asked.popleft())
