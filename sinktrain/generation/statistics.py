"""What a stream has done so far, in a few lines and in one."""

from __future__ import annotations

import resource
import sys

from sinktrain.generation.endless import Stream

MEBI = 2**20


def statistics(stream: Stream) -> str:
    """The lines that stand at the end of a run: tokens, their pace, the cache, the process."""
    prompted, generated = stream.prompted, stream.generated
    return "\n".join(
        [
            f"read: {prompted.tokens} tokens in {prompted.seconds:.1f} s, {prompted.rate:.1f} tokens/s",
            f"generated: {stream.drawn} tokens in {generated.seconds:.1f} s, {generated.rate:.1f} tokens/s",
            f"cache: {state(stream)}, {stream.cache_bytes() / MEBI:.1f} MiB",
            f"process: {peak_memory() / MEBI:.0f} MiB at most",
        ]
    )


def state(stream: Stream) -> str:
    """What is in the cache: its name, sinks and recent rows in use, tokens seen and evicted."""
    spec = stream.cache.spec
    sinks = min(stream.seen, spec.sinks)
    recent = stream.seen - sinks if spec.recent is None else min(stream.seen - sinks, spec.recent)
    return (
        f"{spec}, sinks {sinks}/{spec.sinks}, recent {recent}/{spec.recent or 'all'}, "
        f"{stream.seen} tokens seen, {stream.evicted()} evicted"
    )


def status_line(stream: Stream) -> str:
    """One line for the bottom of a terminal."""
    return f"cache {state(stream)}, {stream.generated.rate:.1f} tokens/s"


def peak_memory() -> int:
    """The most memory that this process has had at any time, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
