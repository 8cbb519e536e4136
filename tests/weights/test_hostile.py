"""Files that lie are refused in one line, in little memory and time, and change nothing."""

import re
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.weights import hostile
from tljax.errors import InputError
from tljax.io.checked_files import read_json

MEGABYTES = 200
SECONDS = 2


def _memory(key: str) -> float:
    """In MiB: `VmRSS`, or its peak `VmHWM` since that was last reset."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def test_every_hostile_file_is_refused_in_one_line(tmp_path):
    paths = hostile.make(tmp_path, 110, long=False)
    assert len(paths) == 110
    faults = []
    for path in paths:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        memory, start = _memory("VmRSS"), time.process_time()
        try:
            hostile.read(path)
            faults.append(f"{path.name} was read")
        except InputError as error:
            if not str(error).isprintable() or len(str(error)) > 5000:
                faults.append(f"{path.name}: no line: {error}")
        except BaseException as error:
            faults.append(f"{path.name}: {type(error).__name__} {error}")
        if _memory("VmHWM") - memory > MEGABYTES or time.process_time() - start > SECONDS:
            faults.append(f"{path.name}: {_memory('VmHWM') - memory} MiB, {time.process_time() - start} s")
    assert not faults
    # A pickle that could reach numpy's types would have changed them for the whole process.
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2 and np.dtype("f4").itemsize == 4
    assert np.array([1.5], ml_dtypes.bfloat16).astype(np.float32) == 1.5


def test_the_good_files_that_they_are_made_of_are_read(tmp_path):
    (tmp_path / "good.npz").write_bytes(hostile.npz(hostile.npy()))
    (tmp_path / "good.pth").write_bytes(hostile.torch_with())
    (tmp_path / "good.safetensors").write_bytes(
        hostile.safetensors(hostile.header(), hostile.WEIGHT.tobytes() + hostile.BIAS.tobytes())
    )
    (tmp_path / "old.pth").write_bytes(
        hostile.legacy(
            [hostile.GOOD_DICT, ["0", "1"]],
            b"".join(
                len(array.ravel()).to_bytes(8, "little") + array.tobytes() for array in (hostile.WEIGHT, hostile.BIAS)
            ),
        )
    )
    for name in ("good.npz", "good.pth", "good.safetensors", "old.pth"):
        arrays = hostile.read(tmp_path / name)
        np.testing.assert_array_equal(arrays["fc/kernel"], hostile.WEIGHT.T)
        np.testing.assert_array_equal(arrays["fc/bias"], hostile.BIAS)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}
