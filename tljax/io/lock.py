"""One writer per workdir: who it is, whether it still lives, and whether it still is. No clock is asked."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from etils import epath
from filelock import FileLock, Timeout

from tljax import console
from tljax.errors import InputError
from tljax.io import buckets, storage

BEAT = 10.0  # seconds between two signs of life
_NAME = "writer.json"
_BYTES = 512  # of `writer.json`: always as many, so that a sign of life needs no more room on a disk that is full


class Taken(InputError):
    """Another process is the writer; the message names it."""


class Lost(Taken):
    """This process was the writer and is no more: it was taken for dead, or its folder is not the one it was."""


class Lock:
    """A lock of a folder, held from `acquire` to `release`, or until its process is dead.

    On a disk the system lets go of `.lock` when the process ends, however it ends. Across machines, and in a bucket,
    where that may not hold, `writer.json` changes every `BEAT` seconds as long as the writer lives. Who was stopped
    for longer, or whose folder was removed, renamed or replaced, learns so by `check`.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._key = folder, os.fspath(folder)
        self._system = None if storage.is_remote(folder) else FileLock(folder / ".lock")
        self._sign = (_BucketSign if storage.is_remote(folder) else _DiskSign)(folder / _NAME)
        self._done = threading.Event()
        self._beating: threading.Thread | None = None
        self._beats = 0
        self._token = secrets.token_hex(8)

    def acquire(self) -> None:
        """Takes the folder, which must be there.

        Raises:
            Taken: another process has it; its host, process and start are named.
        """
        if self._system:
            try:
                self._system.acquire(timeout=0)
            except Timeout as error:
                raise self._refused(self._sign.read()) from error
            except NotImplementedError:  # this disk knows no locks
                self._system = None
        try:
            self._claim()
        except BaseException:
            if self._system:
                self._system.release()
            raise
        _HELD[self._key] = self
        self._beating = threading.Thread(target=self._keep_beating, daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raises if this process is not the writer any more. To be called before each write, and costs a small read.

        Raises:
            Lost: another process is, or was; or the folder was removed, renamed or replaced.
            OSError: the disk does not say.
        """
        holder = self._sign.read()
        if holder and holder.get("token") == self._token:
            return
        own_process = f"this process ({os.getpid()} on {socket.gethostname()}, since {_STARTED})"
        if holder:
            message = f"{_name(holder)}, writes there now, and no longer {own_process}"
        else:
            message = (
                f"it was removed, renamed or replaced, or another process has taken it over, since {own_process} began"
            )
        raise Lost(
            f"{self._folder}: {message}: nothing more is written there; what is saved goes on from where it is now"
        )

    def release(self) -> None:
        """Releases the folder, so that nobody need wait."""
        self._done.set()
        if self._beating:
            self._beating.join()
            with contextlib.suppress(OSError):
                self._sign.remove(self._token)
        if _HELD.get(self._key) is self:
            del _HELD[self._key]
        if self._system:
            self._system.release()

    def _claim(self) -> None:
        """Puts this process's name where none is, or that of one that is dead."""
        holder = self._sign.read()
        if holder and (not self._system or self._may_live(holder)):
            self._wait_for_death(holder)
        if not self._sign.claim(self._content(), holder):
            raise self._refused(self._sign.read())

    def _may_live(self, holder: dict[str, Any]) -> bool:
        """Returns whether a writer may live although its lock is free: elsewhere, or where someone removed `.lock`."""
        if holder["host"] != socket.gethostname():
            return bool(holder["host"])
        return self._key in _HELD if holder["pid"] == os.getpid() else _runs(holder["pid"])

    def _wait_for_death(self, holder: dict[str, Any]) -> None:
        wait = 3 * BEAT
        message = f"{self._folder} was being written by {_name(holder)}: looking for {wait:g} s whether it lives"
        console.console.print(message)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            time.sleep(BEAT / 10)
            now = self._sign.read()
            if now is None:
                return
            if now != holder:
                raise self._refused(now)

    def _refused(self, holder: dict[str, Any] | None) -> Taken:
        who = _name(holder) if holder else "another process"
        return Taken(f"{self._folder} is being written by {who}: wait for it, stop it, or give another --workdir")

    def _content(self) -> bytes:
        self._beats += 1
        who = {"host": socket.gethostname(), "pid": os.getpid(), "started": _STARTED, "token": self._token}
        return json.dumps(who | {"beats": self._beats}).encode().ljust(_BYTES)

    def _keep_beating(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is gone for a moment
                self._sign.renew(self._content(), self._token)


class _DiskSign:
    """`writer.json` on a disk. Its writer changes it in place, and so never what another has put there instead."""

    def __init__(self, file: epath.Path):
        self._file = os.fspath(file)

    def read(self) -> dict[str, Any] | None:
        """Returns what `_parsed` makes of it; None if it is not there."""
        try:
            with open(self._file, "rb") as file:  # noqa: PTH123
                return _parsed(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def claim(self, content: bytes, dead: dict[str, Any] | None) -> bool:
        """Creates it, in the place of one who is `dead`; returns whether no other process was quicker."""
        if dead and self.read() == dead:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file)  # noqa: PTH108
        try:
            with open(self._file, "xb", buffering=0) as file:  # noqa: PTH123
                file.write(content)
        except FileExistsError:
            return False
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._file)  # noqa: PTH108
            raise
        return True

    def renew(self, content: bytes, token: str) -> None:
        """Writes other content if it is of the writer with this token."""
        with open(self._file, "r+b", buffering=0) as file:  # noqa: PTH123
            if _parsed(file.read()).get("token") == token:
                file.seek(0)
                file.write(content)

    def remove(self, token: str) -> None:
        """Removes it if it is of the writer with this token."""
        if (self.read() or {}).get("token") == token:
            os.unlink(self._file)  # noqa: PTH108


class _BucketSign:
    """`writer.json` in a bucket, written only as long as it is what this process has seen there (`buckets.put`)."""

    def __init__(self, file: epath.Path):
        self._file, self._version = file, ""

    def read(self) -> dict[str, Any] | None:
        """Reads it as `_DiskSign.read` does."""
        try:
            return _parsed(buckets.read(self._file))
        except FileNotFoundError:
            return None

    def claim(self, content: bytes, dead: dict[str, Any] | None) -> bool:
        """Creates it as `_DiskSign.claim` does."""
        version = buckets.version_of(self._file) if dead else ""
        if dead and self.read() != dead:
            return False
        try:
            self._version = buckets.put(self._file, content, version)
        except buckets.Conflict:
            return False
        return True

    def renew(self, content: bytes, token: str) -> None:
        """Writes other content as `_DiskSign.renew` does."""
        with contextlib.suppress(buckets.Conflict):  # another has taken it over, which `check` will find
            self._version = buckets.put(self._file, content, self._version)

    def remove(self, token: str) -> None:
        """Removes it as `_DiskSign.remove` does."""
        buckets.remove(self._file, self._version)


def check(folder: epath.Path) -> None:
    """Calls `Lock.check` of the lock that this process has acquired for a folder, if it has one."""
    if lock := _HELD.get(os.fspath(folder)):
        lock.check()


def writer(folder: epath.Path) -> dict[str, Any] | None:
    """Returns who writes to a folder, as `host`, `pid` and `started`, by a look from outside; None if nobody does.

    A look is for people: a writer elsewhere that has shown no sign of life for a minute counts as dead by the clocks of
    both. Who wants to write asks `acquire`.
    """
    holder = _read(folder)
    if holder is None or not holder["host"]:
        return None
    try:
        if holder["host"] != socket.gethostname():
            return holder if time.time() - storage.modified(folder / _NAME) < 6 * BEAT else None
    except FileNotFoundError:
        return None
    return holder if _runs(holder["pid"]) else None


def clear(folder: epath.Path) -> None:
    """Removes the sign of a writer who died with all done but letting go; not of one who lives, nor where none may."""
    if _read(folder) and writer(folder) is None:
        lock = Lock(folder)
        with contextlib.suppress(OSError, Taken):
            lock.acquire()
            lock.release()


def _read(folder: epath.Path) -> dict[str, Any] | None:
    try:
        return _parsed(storage.read(folder / _NAME))
    except OSError:
        return None


def _parsed(content: bytes) -> dict[str, Any]:
    """Returns what a `writer.json` says; of one that is damaged, a writer on no host."""
    try:
        holder = json.loads(content)
        texts = isinstance(holder["host"], str) and isinstance(holder["started"], str)
        if texts and isinstance(holder["pid"], int) and holder["pid"] > 0:
            return holder
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return {"host": "", "pid": 0, "started": "", "content": content}


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _name(holder: dict[str, Any]) -> str:
    if not holder["host"]:
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, which began at {holder['started']}"


_HELD: dict[str, Lock] = {}  # those that this process has acquired, by folder
_STARTED = datetime.now(UTC).isoformat(timespec="seconds")
