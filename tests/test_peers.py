"""Processes that watch each other: real ones that are killed, stopped, leave or do not fit; without jax, for speed."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import PATIENCE, ROOT
from tljax.distributed import peers

PROGRAM = """
import os, sys, time
from tljax.distributed import peers
peers.BEAT = 0.2
number, count, port, patience, ends = int(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4]), sys.argv[5]
others = peers.Peers(number, count, "127.0.0.1", port, patience)
if ends == "well" and number == 2:
    time.sleep(2)
try:
    others.meet()
except (peers.Lost, peers.InputError) as error:
    print(error, flush=True)
    os._exit(75 if isinstance(error, peers.Lost) else 2)
print("met", flush=True)
if ends == str(number):
    others.leave(2, "task.train is wrong")
    os._exit(2)
time.sleep(0.3 if ends == "well" else 60)
others.leave()
time.sleep(0.3)
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(count: int, port: int = 0, patience: float = 60, ends: str = "", counts: str = "") -> list[subprocess.Popen]:
    port, counts = port or _free_port(), counts or str(count) * count
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    arguments = [(str(i), counts[i], str(port), str(patience), ends) for i in range(count)]
    return [subprocess.Popen([sys.executable, "-c", PROGRAM, *given], **pipes) for given in arguments]


def _printed(process: subprocess.Popen) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, printed


@pytest.mark.parametrize(
    ("number", "number_of_signal", "how"),
    [
        (0, signal.SIGKILL, "is gone: it was killed, or its machine or network failed"),
        (1, signal.SIGKILL, "is gone: it was killed, or its machine or network failed"),
        (0, signal.SIGSTOP, "has not answered for 2 s"),
        (2, signal.SIGSTOP, "has not answered for 2 s"),
    ],
)
def test_a_process_that_is_killed_or_stopped_is_named_by_the_others(number, number_of_signal, how):
    processes = _start(3, patience=2)
    for process in processes:
        assert process.stdout.readline() == "met\n"
    began = time.monotonic()
    processes[number].send_signal(number_of_signal)
    name = f"process {number} of 3 on {socket.gethostname()}"
    line = f"error: {name} {how}: the same command goes on from the last step saved\n"
    for i, process in enumerate(processes):
        if i != number:
            assert _printed(process) == (75, line)
    assert time.monotonic() - began < 20  # on a machine that is busy
    if number_of_signal == signal.SIGSTOP:  # and when it goes on, it ends as the others did
        processes[number].send_signal(signal.SIGCONT)
        status, printed = _printed(processes[number])
        assert status == 75 and printed.count("error: ") == 1
    else:
        processes[number].communicate()


def test_all_stopped_at_once_go_on_together():
    processes = _start(2, patience=1)
    for process in processes:
        assert process.stdout.readline() == "met\n"
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            process.send_signal(number)
        time.sleep(1.5)
    assert all(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
        process.communicate()


def test_one_that_ends_with_an_error_ends_the_others_with_the_same():
    first, second, third = map(_printed, _start(3, ends="1"))
    assert second == (2, "met\n")
    line = f"error: process 1 of 3 on {socket.gethostname()} has ended: task.train is wrong\n"
    assert first == third == (2, f"met\n{line}")


def test_one_that_ends_first_for_an_error_that_all_know_is_not_lost(monkeypatch, capsys):
    ended = []

    def end(status):
        ended.append(status)
        raise SystemExit

    monkeypatch.setattr(peers.os, "_exit", end)
    others = peers.Peers(2, 3, "127.0.0.1", 1, patience=60)
    others._ending = "process 1 of 3 has ended: task.train is wrong", 2
    near, far = socket.socketpair()
    with far, near, pytest.raises(SystemExit):
        others._lose(peers._Peer(near, 0), "is gone")
    assert ended == [2] and capsys.readouterr().err == "error: process 1 of 3 has ended: task.train is wrong\n"


def test_those_that_wait_and_those_that_end_well_are_not_lost():
    assert [_printed(process) for process in _start(3, patience=1, ends="well")] == [(0, "met\n")] * 3


def test_a_port_that_is_taken_ends_all_and_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        first, second = _start(2, port)
        other.accept()[0].close()
        told = f"process 0 of 2 on {socket.gethostname()} cannot listen at port {port} (Address already in use)"
        assert _printed(first) == (75, f"{told}: end what listens there, or give another port in --coordinator\n")
        told = f"process 0 of 2 at 127.0.0.1:{port} is not what listens there: see what it said"
        assert _printed(second) == (75, f"{told}, or whether the port is taken\n")


def test_another_run_at_the_port_is_left_alone():
    port = _free_port()
    processes = _start(2, port)
    for process in processes:
        assert process.stdout.readline() == "met\n"
    first, second = _start(2, port)
    assert _printed(first)[0] == 75
    status, printed = _printed(second)
    assert status == 75 and "has all that it waited for: is it of another run?" in printed
    assert all(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
        process.communicate()


def test_processes_of_other_numbers_are_refused_by_both():
    line = "process 1 was started as one of 3, process 0 of 2: give all the same\n"
    assert [_printed(process) for process in _start(2, counts="23")] == [(2, line)] * 2
