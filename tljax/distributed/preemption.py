"""When a run is told to stop before its end: by a signal, or by its own time limit."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

SAVED = 75  # the exit status, sysexits.h's EX_TEMPFAIL: all is saved, the same command goes on
# A scheduler before it takes the machine away, a person, what Slurm's --signal=USR1@60 sends, a terminal that closes.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """The run was told to stop, and did; the message says by what and where it stands."""


class PreemptionSignal:
    """Notes that a run is told to stop; a signal raises `Stopped`, but not within `deferred`.

    Args:
        max_seconds: from now; 0 for no limit.
    """

    def __init__(self, max_seconds: float = 0.0):
        self._reason, self._deferred = "", False
        self._began, self._limit = time.monotonic(), max_seconds
        self._last, self._longest = 0.0, 0.0

    @contextlib.contextmanager
    def listening(self, interactive: bool = False) -> Iterator["PreemptionSignal"]:
        """Hears the signals, for the block; a second one ends the process at once, with status 128 + its number.

        Only in the main thread.

        Args:
            interactive: of signals, hears a person's interrupt alone; a second one is a `KeyboardInterrupt`.
        """
        if interactive:
            before = signal.signal(signal.SIGINT, self._hear_person)
            try:
                yield self
            finally:
                signal.signal(signal.SIGINT, before)
            return
        heard, wakes = socket.socketpair()
        wakes.setblocking(False)
        # Python's own handlers wait while the main thread compiles; this thread does not.
        threading.Thread(target=_count, args=(heard,), daemon=True).start()
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # by nohup
        before = {number: signal.signal(number, self._hear) for number in SIGNALS if number not in ignored}
        wakeup = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            wakes.close()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals, for the block: the loop inside asks for `reason` between its steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def reason(self) -> str:
        """Returns why to stop now; empty if not. To be asked once between two steps.

        A time limit counts as reached when what took longest between two steps would no longer fit.
        """
        now = time.monotonic()
        if self._last:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        if self._limit and not self._reason and now - self._began + self._longest > self._limit:
            self._reason = f"--max-seconds={self._limit:g}"
        return self._reason

    def raise_if_set(self) -> None:
        """Raises `Stopped`, if there is a reason to."""
        if reason := self.reason():
            raise Stopped(f"stopped by {reason}")

    def _hear_person(self, number: int, frame: object) -> None:
        if self._reason:
            raise KeyboardInterrupt
        print("interrupted: stopping at the next step, with all saved; once more stops at once", file=sys.stderr)
        self._hear(number, frame)

    def _hear(self, number: int, frame: object) -> None:
        self._reason = self._reason or signal.Signals(number).name
        if not self._deferred:
            raise Stopped(f"stopped by {self._reason}")


def _count(heard: socket.socket) -> None:
    count = 0
    while received := heard.recv(1):
        number = received[0]
        if number in SIGNALS:
            name = signal.Signals(number).name
            if count and number == signal.SIGHUP:  # a terminal's shell and the system both send it
                continue
            count += 1
            if count > 1:
                os._exit(128 + number)
            with contextlib.suppress(OSError, ValueError):  # a console that is gone: this thread must live
                print(f"{name}: stopping at the next step, with all saved; once more stops at once", file=sys.stderr)
