"""The processes of a run watch each other: one that dies, ends or falls silent is named within seconds.

Each holds a connection to the first, over which both say every second that they live. The system closes it when a
process dies; one that is stopped, or whose machine is gone, falls silent. The first tells the others.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from tljax.errors import InputError
from tljax.streams import in_one_line

LOST = 75  # the exit status, sysexits.h's EX_TEMPFAIL: another process is gone, the same command goes on
BEAT = 1.0  # seconds between two signs of life
_GRACE = 10  # beats in which the others have to end by themselves when one has ended with an error
_ANSWER = 10.0  # seconds in which the first process answers a newcomer


class Lost(Exception):
    """The run cannot begin now, by no fault of its config; the message says why."""


@dataclass(eq=False)
class _Peer:
    """Another process, or whoever has connected and has not said yet who it is (number -1)."""

    connection: socket.socket
    number: int = -1
    host: str = ""
    silent: int = 0
    ended: bool = False
    unread: bytes = b""

    def __post_init__(self) -> None:
        self.connection.settimeout(_ANSWER)

    def send(self, **message: Any) -> None:
        """Sends a message, or without one a sign of life."""
        with contextlib.suppress(OSError):  # it is gone: who reads sees it
            self.connection.sendall((json.dumps(message) if message else "").encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have come since.

        Raises:
            OSError: the connection is closed.
            ValueError: what comes is none of ours.
        """
        data = self.connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed")
        *lines, self.unread = (self.unread + data).split(b"\n")
        messages = [json.loads(line) for line in lines if line]
        if len(self.unread) > 1 << 16 or not all(isinstance(message, dict) for message in messages):
            raise ValueError("no message")
        return messages


class Peers:
    """The other processes of a run, watched by a thread from `meet` to `leave`; it ends this process where it must.

    Args:
        number: of this process, of `count`.
        host, port: where the first is reached.
        patience: seconds after which one that is silent counts as lost.
    """

    def __init__(self, number: int, count: int, host: str, port: int, patience: float):
        self.number, self.count, self._host, self._port, self._patience = number, count, host, port, patience
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._complete, self._left = threading.Event(), False
        self._ending: tuple[str, int] | None = None
        self._grace, self._unlike = _GRACE, ""

    def meet(self) -> str:
        """Waits until all have come; returns the address at which jax's own coordinator is to be reached, or to listen.

        Raises:
            Lost: the port is taken, by whatever else.
            InputError: the processes do not fit together.
        """
        if self.number:
            return self._come()
        try:
            listener = _listen(self._port)
        except OSError as error:
            message = f"{self._name(0, socket.gethostname())} cannot listen at port {self._port}"
            message += f" ({os.strerror(error.errno)})"
            raise Lost(f"{message}: end what listens there, or give another port in --coordinator") from error
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._service = _free_port()
        if self.count == 1:
            self._complete.set()
        self._start()
        self._complete.wait()
        if self._unlike:
            raise InputError(self._unlike)
        return f"127.0.0.1:{self._service}"

    @property
    def missing(self) -> str:
        """Returns which have not come yet, as far as is known here: `process 2` …; empty if all have."""
        numbers = range(1, self.count) if self.number == 0 else ()
        return ", ".join(f"process {number}" for number in numbers if number not in self._peers)

    def refuse(self, reason: str) -> None:
        """Tells those that have come that the run does not begin."""
        for peer in self._peers.values():
            peer.send(refused=reason, again=False)

    def leave(self, status: int = 0, reason: str = "") -> None:
        """Tells the others that this process ends, so that they do not count it as lost; waits for them if `status`."""
        self._left = True
        for peer in self._peers.values():
            peer.send(ended=reason, status=status, number=self.number, host=socket.gethostname())
        deadline = time.monotonic() + (_GRACE + 2) * BEAT
        while status and time.monotonic() < deadline and not all(peer.ended for peer in self._peers.values()):
            time.sleep(BEAT / 100)

    def settle(self, seconds: float = 3.0) -> None:
        """Returns where no other process is the cause of an error that this one has met; else ends this one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._ending:
                self._end(*self._ending)
            time.sleep(BEAT / 100)

    def _come(self) -> str:
        first, message = _Peer(_connected(self._host, self._port), 0), dict[str, Any]()
        first.send(tljax="peer", number=self.number, count=self.count, host=socket.gethostname())
        while not {"port", "refused"} & message.keys():
            try:
                for part in first.receive():
                    message |= part
            except (OSError, ValueError) as error:
                leader = f"process 0 of {self.count} at {self._host}:{self._port}"
                how = "has died before all had come" if "welcome" in message else "is not what listens there"
                raise Lost(f"{leader} {how}: see what it said, or whether the port is taken") from error
        if "refused" in message:
            raise (Lost if message["again"] else InputError)(message["refused"])
        first.host = str(message.get("welcome"))
        self._peers[0] = first
        self._selector.register(first.connection, selectors.EVENT_READ, first)
        self._complete.set()
        self._start()
        return f"127.0.0.1:{_door(self._host, message['port'])}"

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _watch(self) -> None:
        due = time.monotonic() + BEAT
        while True:
            for key, _ in self._selector.select(max(due - time.monotonic(), 0)):
                if key.data is None:
                    with contextlib.suppress(OSError):
                        newcomer = _Peer(key.fileobj.accept()[0])
                        self._selector.register(newcomer.connection, selectors.EVENT_READ, newcomer)
                else:
                    self._hear(key.data)
            if time.monotonic() >= due:
                due = time.monotonic() + BEAT
                self._beat()

    def _beat(self) -> None:
        """Says that this process lives, and counts the beats in which others have not; while it is stopped, none."""
        for peer in list(self._peers.values()):
            peer.send()
            peer.silent += int(self._complete.is_set())  # before, they only listen
            if not (peer.ended or self._left) and peer.silent * BEAT > self._patience:
                self._lose(peer, f"has not answered for {self._patience:g} s")
        if self._ending and not self._left:
            self._grace -= 1
            if self._grace < 0:
                self._end(*self._ending)

    def _hear(self, peer: _Peer) -> None:
        try:
            messages = peer.receive()
        except TimeoutError:
            return
        except (OSError, ValueError):
            self._selector.unregister(peer.connection)
            peer.connection.close()
            gone, peer.ended = not peer.ended, True
            if self._complete.is_set() and peer.number >= 0 and gone and not self._left:
                self._lose(peer, "is gone: it was killed, or its machine or network failed")
            elif not self._complete.is_set():
                self._peers.pop(peer.number, None)
            return
        peer.silent = 0
        for message in messages:
            if peer.number < 0:
                self._greet(peer, message)
            elif "lost" in message and not self._left:
                self._end(message["lost"], LOST)
            elif "ended" in message:
                self._take_leave(peer, message)

    def _greet(self, peer: _Peer, hello: dict[str, Any]) -> None:
        number, count = hello.get("number"), hello.get("count")
        if hello.get("tljax") != "peer" or self._complete.is_set() or number in self._peers:
            complete = f"process 0 of {self.count} at port {self._port} has all that it waited for"
            peer.send(refused=f"{complete}: is it of another run? Give each a port of its own", again=True)
            return
        if count != self.count or number not in range(1, self.count):
            self._unlike = (
                f"process {number} was started as one of {count}, process 0 of {self.count}: give all the same"
            )
            peer.send(refused=self._unlike, again=False)
            self.refuse(self._unlike)
            self._complete.set()
            return
        peer.number, peer.host = number, str(hello.get("host"))
        self._peers[number] = peer
        peer.send(welcome=socket.gethostname())
        if len(self._peers) == self.count - 1:
            for other in self._peers.values():
                other.send(port=self._service)
            self._complete.set()

    def _take_leave(self, peer: _Peer, message: dict[str, Any]) -> None:
        """Notes that a process has ended by itself; where it was an error, this one has a while to meet the same."""
        if message["number"] == peer.number:
            peer.ended = True
        if self.number == 0:
            for other in self._peers.values():
                if other is not peer:
                    other.send(**message)
        if message["status"] and not self._ending:
            name = self._name(message["number"], message["host"])
            self._ending = f"{name} has ended: {message['ended']}", message["status"]

    def _lose(self, peer: _Peer, how: str) -> NoReturn:
        """Ends this process and so the others: one is lost, or was a little sooner to end for what all know."""
        if self._ending:
            self._end(*self._ending)
        message = f"{self._name(peer.number, peer.host)} {how}: the same command goes on from the last step saved"
        for other in self._peers.values():
            other.send(lost=message)
            with contextlib.suppress(OSError):
                other.connection.shutdown(socket.SHUT_WR)
        self._end(message, LOST)

    def _end(self, message: str, status: int) -> NoReturn:
        try:
            print(f"error: {in_one_line(message)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # What is unread when a connection is closed would take back what was sent.
            deadline = time.monotonic() + BEAT / 2
            while self.number == 0 and time.monotonic() < deadline:
                for key, _ in self._selector.select(BEAT / 10):
                    if key.data and not key.fileobj.recv(1 << 16):
                        self._selector.unregister(key.fileobj)
        finally:
            os._exit(status)

    def _name(self, number: int, host: str) -> str:
        return f"process {number} of {self.count}" + (f" on {host}" if host else "")


def _connected(host: str, port: int) -> socket.socket:
    """Returns a connection, as soon as somebody listens there."""
    while True:
        try:
            return socket.create_connection((host, port), _ANSWER)
        except OSError:
            time.sleep(BEAT / 5)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port() -> int:
    with _listen(0) as listener:
        return listener.getsockname()[1]


def _door(host: str, port: int) -> int:
    """Returns a port of this machine that leads to jax's coordinator, and stays open when that is gone.

    jax aborts a process whose connection to the coordinator breaks, before anyone could say which process was lost.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            far = _connected(host, port)
            far.settimeout(None)
            threading.Thread(target=_pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=_pump, args=(far, near, False), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def _pump(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        if closes:
            target.shutdown(socket.SHUT_WR)
