"""Python processes that are forked from one that has imported tljax and jax already, which takes 6 s a process.

They are processes as any other: each has its own id, is a child of who started it, and ends by real signals. What an
interpreter does as it starts is not seen with them: for that there is `subprocess`.

    python -m tests.forks FD

is the process that they are forked from: it has no backend of jax and no thread of Python's.
"""

import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
# What tljax loads only when it is needed, which most processes come to.
_LATE = ("matplotlib.pyplot", "scipy.stats", "sklearn.metrics", "tensorboardX", "tensorflow_datasets")
_lock = threading.Lock()
_servers: list[socket.socket] = []
_Real = subprocess.Popen  # a test may set this class in its place


class Popen(subprocess.Popen):
    """As `subprocess.Popen`; a command of this Python's is forked, where its environment allows that."""

    def _execute_child(self, *values: Any) -> None:
        names = list(inspect.signature(_Real._execute_child).parameters)[1:]
        options = dict(zip(names, values, strict=True))
        command, environment = options["args"], dict(os.environ if options["env"] is None else options["env"])
        if isinstance(command, str) or options["shell"] or not _forkable(list(map(str, command)), environment):
            super()._execute_child(*values)
            return
        request = {
            "command": list(map(str, command)),
            "environment": environment,
            "cwd": os.fspath(options["cwd"] or Path.cwd()),
            "session": options["start_new_session"],
        }
        ends = [options["p2cread"], options["c2pwrite"], options["errwrite"]]
        with _lock:
            self.pid = _forked(request, [i if fd == -1 else fd for i, fd in enumerate(ends)])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[name] for name in pipes))


def run(command: list, *, check: bool = False, capture_output: bool = False, timeout: float | None = None, **options):
    """Returns what `subprocess.run` does."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stdout, stderr)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _forkable(command: list[str], environment: dict[str, str]) -> bool:
    """Whether a fork is the process that the command asks for."""
    # Python reads its variables as it starts; and without a folder for compiled programs tljax names one, which has to
    # be before jax is imported.
    names = {name for name in os.environ.keys() | environment if name.startswith("PYTHON")}
    same = all(environment.get(name) == os.environ.get(name) for name in names)
    ours = command[0] == sys.executable and len(command) > 1 and (command[1] in ("-m", "-c") or command[1][0] != "-")
    return sys.platform == "linux" and ours and same and "JAX_COMPILATION_CACHE_DIR" in environment


def _forked(request: dict[str, Any], streams: list[int]) -> int:
    """Asks for a process, and returns its id."""
    if not _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        number = theirs.fileno()
        command = [sys.executable, "-m", "tests.forks", str(number)]
        _Real(command, pass_fds=[number], cwd=Path(__file__).parents[1], env=plain | {"TF_CPP_MIN_LOG_LEVEL": "2"})
        theirs.close()
        _servers.append(ours)
    answer, theirs = os.pipe()
    prctl = ctypes.CDLL(None).prctl
    # Its first parent ends at once: for this while, such orphans become children of this process.
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        socket.send_fds(_servers[0], [json.dumps(request).encode()], [*streams, theirs])
        os.close(theirs)
        number = os.read(answer, 20)
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)
        os.close(answer)
    if not number:
        raise OSError(f"no process was forked for {request['command']}")
    return int(number)


def _serve(connection: socket.socket) -> list[str] | None:
    """Forks until nobody asks any more; returns only in what was forked, with its command."""
    from tests import memory
    from tljax.cli import convert, evaluate, inspect, predict, report, sweep, train  # noqa: F401

    memory.keep_freed()
    for name in _LATE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while message := socket.recv_fds(connection, 2**20, 4):
        request, fds, _, _ = message
        if not request:
            return None
        if (child := os.fork()) == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0005)
            connection.close()
            return _begin(json.loads(request), fds)
        os.waitpid(child, 0)
        for fd in fds:
            os.close(fd)
    return None


def _begin(request: dict[str, Any], fds: list[int]) -> list[str]:
    """Makes of this process the one that was asked for, says its id, and returns its command."""
    import jax

    from tests import quick_compile

    quick_compile.install()
    if request["session"]:
        os.setsid()
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["cwd"]
    for name, value in os.environ.items():
        if name.startswith("JAX_") and name.lower() in jax.config.values:
            kind = type(jax.config.values[name.lower()])
            read = {bool: lambda text: text.lower() in ("1", "true"), int: int, float: float}.get(kind, str)
            jax.config.update(name.lower(), read(value))
    os.write(fds[3], str(os.getpid()).encode())
    os.close(fds[3])
    return request["command"]


def _run(command: list[str]) -> None:
    """Does what Python does with a command line."""
    sys.orig_argv = command
    if command[1] == "-m":
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    elif command[1] == "-c":
        sys.argv = ["-c", *command[3:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(command[2], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = command[1:]
        sys.path[0] = str(Path(command[1]).parent.absolute())
        runpy.run_path(command[1], run_name="__main__")


if __name__ == "__main__" and (_command := _serve(socket.socket(fileno=int(sys.argv[1])))):
    # As if it had started with this: huge pages are asked for as an interpreter starts anew.
    os.environ.setdefault("GLIBC_TUNABLES", "")
    _run(_command)
