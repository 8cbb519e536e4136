"""One writer per workdir: who it is, and whether it still lives. No clock is asked, so none can be wrong."""

import contextlib
import json
import os
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from etils import epath
from filelock import FileLock, Timeout

from tljax import console, storage
from tljax.errors import InputError

BEAT = 10.0  # seconds between two signs of life
_NAME = "writer.json"


class Taken(InputError):
    """Another process is the writer; the message names it."""


class Lock:
    """Held from `acquire` to `release`, or until its process is dead.

    On a disk the system lets go of `.lock` when the process ends, however it ends. Across machines, and in a bucket,
    where that may not hold, `writer.json` changes every `BEAT` seconds as long as the writer lives.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._file = folder, folder / _NAME
        self._system = None if storage.is_remote(folder) else FileLock(folder / ".lock")
        self._done = threading.Event()
        self._beating: threading.Thread | None = None
        self._beats = 0

    def acquire(self) -> None:
        """Takes the folder, which must be there.

        Raises:
            Taken: another process has it; its host, process and start are named.
        """
        if self._system:
            try:
                self._system.acquire(timeout=0)
            except Timeout as error:
                raise self._refused(self._holder()) from error
            except NotImplementedError:  # this disk knows no locks
                self._system = None
        holder = self._holder()
        if holder and (not self._system or holder["host"] != socket.gethostname()):
            self._wait_for_death(holder)
        self._beat()
        self._beating = threading.Thread(target=self._keep_beating, daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Lets go, so that nobody need wait."""
        self._done.set()
        if self._beating:
            self._beating.join()
            with contextlib.suppress(OSError):
                self._file.unlink()
        if self._system:
            self._system.release()

    def _wait_for_death(self, holder: dict[str, Any]) -> None:
        told = f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
        wait = 3 * BEAT
        console.console.print(f"{self._folder} was being written by {told}: looking for {wait:g} s whether it lives")
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(BEAT / 10)
            now = self._holder()
            if now is None:
                return
            if now != holder:
                if self._system:
                    self._system.release()
                raise self._refused(now)

    def _refused(self, holder: dict[str, Any] | None) -> Taken:
        who = "another process"
        if holder:
            who = f"process {holder['pid']} on {holder['host']}, which began at {holder['started']}"
        return Taken(f"{self._folder} is being written by {who}: wait for it, stop it, or give another --workdir")

    def _holder(self) -> dict[str, Any] | None:
        return _read(self._file)

    def _beat(self) -> None:
        self._beats += 1
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _STARTED, "beats": self._beats}
        storage.write_whole(self._file, json.dumps(mine).encode())

    def _keep_beating(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is gone for a moment
                self._beat()


def writer(folder: epath.Path) -> dict[str, Any] | None:
    """Who writes to a folder, as `host`, `pid` and `started`, by a look from outside; None if nobody does.

    A look is for people: a writer elsewhere that has shown no sign of life for a minute counts as dead by the clocks of
    both. Who wants to write asks `acquire`.
    """
    found = _read(folder / _NAME)
    if found is None:
        return None
    try:
        if found["host"] != socket.gethostname():
            return found if time.time() - (folder / _NAME).stat().mtime < 6 * BEAT else None
        os.kill(found["pid"], 0)
    except (ProcessLookupError, FileNotFoundError):
        return None
    except PermissionError:  # another user's
        pass
    return found


def clear(folder: epath.Path) -> None:
    """Removes the sign of a writer who died with all done but letting go; not of one who lives, nor where none may."""
    if _read(folder / _NAME) and writer(folder) is None:
        lock = Lock(folder)
        with contextlib.suppress(OSError, Taken):
            lock.acquire()
            lock.release()


def _read(file: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


_STARTED = datetime.now(UTC).isoformat(timespec="seconds")
