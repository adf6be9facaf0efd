"""Makes glibc's malloc keep the memory of large tensors instead of giving it back after each use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

M_TRIM_THRESHOLD = -1  # from <malloc.h>
M_MMAP_MAX = -4


def keep_memory() -> bool:
    """Tells glibc's malloc to reuse the memory of freed tensors. Call it once, before the first large tensor.

    Why: malloc takes every block above a threshold (32 MiB at most, until it is told otherwise) straight from the
    kernel with `mmap` and gives it back when it is freed; it also gives back the free top of its heap. A training
    step on a CPU frees the same large tensors that the next step asks for again, and the kernel has to clear each of
    their pages anew: 160,000 page faults a step for a model of 4 million parameters. With this call large blocks come
    from the heap, which never shrinks, and a step has next to none. `scripts/bench_allocator.py` measures the gain.

    The price: freed memory stays with the process until it ends, and blocks of ever-changing sizes leave gaps. The
    peak of training was 10 to 30% higher; random sizes freed in random order took up to 2.5 times what was in use.

    Nothing is done on systems without glibc (macOS, musl), and nothing when the user has chosen already: by any
    variable `MALLOC_...`, by `GLIBC_TUNABLES`, or by another allocator in `LD_PRELOAD`.

    Returns:
        Whether it applied.
    """
    if not _on_glibc() or _user_chose(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    never_mmap = mallopt(M_MMAP_MAX, 0)
    never_shrink = mallopt(M_TRIM_THRESHOLD, -1)
    return bool(never_mmap and never_shrink)


def _on_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no confstr on Windows, no such name on macOS, refused by musl
        return False


def _user_chose(environment: Mapping[str, str]) -> bool:
    return (
        any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
        or "malloc" in environment.get("LD_PRELOAD", "")  # libjemalloc.so, libtcmalloc.so, libmimalloc.so
    )
