"""keep_memory() makes repeated large allocations free of page faults, where it applies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sinktrain.base.allocator import _on_glibc, _user_chose

pytestmark = pytest.mark.skipif(not _on_glibc(), reason="keep_memory() is about glibc's malloc")

# 64 MB is above every threshold that glibc adapts to by itself; memset through ctypes touches each page.
REPEATED_ALLOCATIONS = """
import ctypes, resource, sys
from sinktrain.base.allocator import keep_memory

applied = keep_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

size = int(sys.argv[2]) << 20
faults(size)
print(applied, sum(faults(size) for _ in range(10)))
"""


def run(way: str, megabytes: int, **variables: str) -> tuple[str, int]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))
    }
    command = [sys.executable, "-c", REPEATED_ALLOCATIONS, way, str(megabytes)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    applied, faults = done.stdout.split()
    return applied, int(faults)


@pytest.mark.parametrize("megabytes", [64, 400])
def test_repeated_allocations_reuse_their_pages(megabytes: int) -> None:
    _, faults_without = run("leave", megabytes)
    applied, faults_with = run("keep", megabytes)
    pages = megabytes * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert applied == "True"
    assert faults_without >= 5 * pages or faults_without >= 10 * megabytes // 2  # huge pages: one fault for each 2 MB
    assert faults_with < faults_without / 10


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "MALLOC_CONF", "GLIBC_TUNABLES"])
def test_nothing_is_done_where_the_user_chose(variable: str) -> None:
    value = "glibc.malloc.arena_max=2" if variable == "GLIBC_TUNABLES" else "2"
    applied, faults = run("keep", 64, **{variable: value})
    assert applied == "False"
    assert faults >= 10 * 64 // 2


@pytest.mark.parametrize(
    ("environment", "chose"),
    [
        ({}, False),
        ({"PATH": "/bin", "LD_PRELOAD": "/usr/lib/libfoo.so"}, False),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, True),
        ({"LD_PRELOAD": "/opt/a.so:/usr/lib/libtcmalloc_minimal.so"}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, True),
    ],
)
def test_what_counts_as_a_choice(environment: dict[str, str], chose: bool) -> None:
    assert _user_chose(environment) is chose
