"""The memory of the devices of a run: an accelerator's own, or a CPU's share of what its host has."""

import os
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils


def device_bytes() -> tuple[int, int]:
    """Returns the bytes that a device has, and those free: the least of all devices of all processes.

    CPU devices, of all processes on a host, share its memory evenly.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices() if device.platform != "cpu"]
    if stats and all("bytes_limit" in device for device in stats):
        has = min(device["bytes_limit"] for device in stats)
        return _least(has, min(device["bytes_limit"] - device.get("bytes_in_use", 0) for device in stats), sharers=0)
    return _least(*host_bytes(), sharers=len(jax.local_devices()))


def _least(has: int, free: int, sharers: int) -> tuple[int, int]:
    """Returns the least of all processes, divided by the sharers on each host; 0 sharers where nothing is shared."""
    if jax.process_count() == 1:
        return has // max(sharers, 1), free // max(sharers, 1)
    # As float32, for integers of 64 bits are not sent.
    host = zlib.crc32(os.uname().nodename.encode()) % 2**24
    rows = np.asarray(multihost_utils.process_allgather(np.array([host, sharers, has, free], np.float32)))
    shares = np.array([max(rows[rows[:, 0] == host, 1].sum(), 1) for host in rows[:, 0]])
    has, free = (int(column) for column in np.min(rows[:, 2:] / shares[:, None], axis=0))
    return has, free


def host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Returns the bytes that this host has, and those free, within the limits of the containers around this process."""
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        has, free = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError):  # no Linux
        has = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _control_groups(proc, cgroups):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                most, used = ((folder / name).read_text().strip() for name in (limit, usage))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:  # of the other version of control groups, or not to be seen from inside a container
                continue
            if most != "max":
                # Files in its page cache count as used, and are given back when memory is asked for.
                cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                has, free = min(has, int(most)), min(free, int(most) - int(used) + cached)
    return has, max(free, 0)


def _control_groups(proc: Path, cgroups: Path) -> list[Path]:
    """Returns the folders of the control groups that this process is in, and of those around them."""
    try:
        rows = [line.split(":", 2)[1:] for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    roots = [(cgroups / kind, path) for kind, path in rows if kind in ("", "memory")]
    folders = [(root, root / path.lstrip("/")) for root, path in roots]
    return [folder for root, path in folders for folder in (path, *path.parents) if folder.is_relative_to(root)]
