import json
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from etils import epath

from tests.test_storage import bucket  # noqa: F401
from tljax.errors import InputError
from tljax.io import lock
from tljax.io.lock import Lock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)


def _write(folder: epath.Path, host: str, beats: int) -> None:
    holder = {"host": host, "pid": 7, "started": "2026-01-02T03:04:05+00:00", "beats": beats}
    (folder / "writer.json").write_text(json.dumps(holder))


def test_a_second_writer_is_refused_with_who_has_it_and_let_in_when_he_is_done(tmp_path):
    folder = epath.Path(tmp_path)
    first, second = Lock(folder), Lock(folder)
    first.acquire()
    with pytest.raises(InputError) as error:
        second.acquire()
    held = json.loads((tmp_path / "writer.json").read_text())
    assert f"written by process {held['pid']} on {held['host']}, which began at {held['started']}" in str(error.value)
    assert held["host"] == socket.gethostname()
    first.release()
    assert not (tmp_path / "writer.json").exists()
    third = Lock(folder)
    third.acquire()
    third.release()


@pytest.fixture
def left(tmp_path) -> epath.Path:
    """A folder whose writer died before it let go."""
    code = "import sys, os; from etils import epath; from tljax.io.lock import Lock"
    code += "; Lock(epath.Path(sys.argv[1])).acquire()"
    subprocess.run([sys.executable, "-c", f"{code}; os._exit(9)", str(tmp_path)], check=False)
    assert (tmp_path / "writer.json").exists()
    return epath.Path(tmp_path)


def test_a_dead_writers_lock_is_taken_over_at_once(left, monkeypatch):
    monkeypatch.setattr(Lock, "_wait_for_death", lambda *_: pytest.fail("waited to see whether he lives"))
    lock = Lock(left)
    lock.acquire()
    lock.release()


def test_what_a_dead_writer_left_is_cleared_and_a_living_one_is_left_alone(left):
    lock.clear(left)
    assert not (left / "writer.json").exists()
    living = Lock(left)
    living.acquire()
    lock.clear(left)
    assert (left / "writer.json").exists()
    living.release()
    lock.clear(left)  # where nothing lies


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, bucket):  # noqa: F811
    place = epath.Path(tmp_path) if request.param == "disk" else bucket
    place.mkdir(parents=True, exist_ok=True)
    return place


def test_on_another_machine_a_writer_that_shows_no_sign_of_life_is_taken_over(folder):
    _write(folder, "elsewhere", 3)
    lock = Lock(folder)
    lock.acquire()
    assert json.loads((folder / "writer.json").read_text())["host"] == socket.gethostname()
    lock.release()


def test_on_another_machine_a_writer_that_lives_is_left_alone(folder):
    _write(folder, "elsewhere", 0)
    done = threading.Event()

    def live():
        beats = 0
        while not done.wait(0.02):
            beats += 1
            _write(folder, "elsewhere", beats)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 7 on elsewhere, which began at 2026-01-02"):
            Lock(folder).acquire()
    finally:
        done.set()
        thread.join()
    _write(folder, "elsewhere", 1000)
    lock = Lock(folder)  # the refused one holds nothing back
    lock.acquire()
    lock.release()


def test_in_a_bucket_this_machines_live_writer_is_left_alone_too(bucket):  # noqa: F811
    bucket.mkdir(parents=True, exist_ok=True)
    first = Lock(bucket)
    first.acquire()
    with pytest.raises(InputError, match="is being written by process"):
        Lock(bucket).acquire()
    first.release()
    assert not fsspec.filesystem("s3").find(str(bucket))


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    first = Lock(epath.Path(tmp_path))
    first.acquire()
    for jump in (-1e8, 1e8):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda jump=jump, now=now: now + jump)
        with pytest.raises(InputError):
            Lock(epath.Path(tmp_path)).acquire()
    first.release()
