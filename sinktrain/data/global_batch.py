"""The global batch in tokens, and the accumulation that makes it."""

from __future__ import annotations

from sinktrain.base.errors import UserError


def accumulation(tokens: int, sequence_length: int, batch_size: int, ranks: int) -> int:
    """Micro-batches of an optimizer step: tokens / (sequence_length * batch_size * ranks).

    Positions are counted, sinks and padding among them, so that a step has equally many samples for every kind of sink.

    Raises:
        UserError: that is no whole number of 1 or more; the sentence names the nearest choices that work.
    """
    each = sequence_length * batch_size * ranks
    if tokens >= each and tokens % each == 0:
        return tokens // each
    below = max(tokens, 0) // each * each
    work = f"{below} and {below + each} work" if below else f"{each} is the least that works"
    sizes = _batch_sizes(tokens, sequence_length * ranks, batch_size)
    raise UserError(
        f"--data.global_batch_tokens {tokens}: is no multiple of a micro-batch ({sequence_length} positions x "
        f"{batch_size} samples x {ranks} processes = {each}); {work}"
        + (f", or with it --data.batch_size {sizes}." if sizes else ".")
    )


def _batch_sizes(tokens: int, each: int, batch_size: int) -> str:
    """The nearest batch sizes that make `tokens` of samples of `each`, below and above."""
    samples, rest = divmod(tokens, each)
    fitting = [size for size in range(1, samples + 1) if samples % size == 0 and not rest]
    near = [*[size for size in fitting if size < batch_size][-1:], *[size for size in fitting if size > batch_size][:1]]
    return " or ".join(map(str, near))
