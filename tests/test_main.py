"""The command line itself: how its process starts."""

import json
import os
import subprocess
import sys

import pytest

from tljax.__main__ import with_huge_pages

PROBE = """
import json, os, sys
from pathlib import Path
from tljax.__main__ import with_huge_pages
with_huge_pages(Path(sys.argv[1]))
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[2]]))
"""


def _start(enabled, **environment):
    command = [sys.executable, "-c", PROBE, str(enabled), "a b"]
    free = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=free | environment)
    pid, tunables, argument = json.loads(process.communicate()[0])
    assert (pid, argument) == (process.pid, "a b")
    return tunables


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        ("always [madvise] never", "glibc.malloc.hugetlb=1"),
        ("[always] madvise never", None),
        ("always madvise [never]", None),
    ],
)
def test_huge_pages_are_asked_for_where_they_are_given_on_demand(tmp_path, kernel, wanted):
    enabled = tmp_path / "enabled"
    enabled.write_text(kernel)
    assert _start(enabled) == wanted


def test_the_users_own_malloc_settings_stay(tmp_path):
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never")
    assert _start(enabled, GLIBC_TUNABLES="glibc.malloc.check=0") == "glibc.malloc.check=0"


def test_a_system_without_them_starts_as_ever(tmp_path):
    with_huge_pages(tmp_path / "enabled")
