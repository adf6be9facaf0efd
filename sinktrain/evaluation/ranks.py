"""Several processes at one grid, where a launcher such as torchrun started several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sinktrain.base.errors import UserError

_LONGEST = timedelta(days=30)
"""How long a rank waits for the others: the slowest of them may have hours more to do."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes the results."""
        return self.rank == 0

    def wait(self) -> None:
        """Goes on once all have come here.

        Raises:
            UserError: one of them has ended.
        """
        if self.count > 1:
            import torch.distributed as dist

            try:
                dist.barrier()
            except RuntimeError as error:  # its connection is closed
                raise UserError(
                    "another rank has failed; its own message says why. What is measured is kept: run the same command "
                    "again once that is mended."
                ) from error


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process's place among those that a launcher started (`WORLD_SIZE`); without one it is alone.

    Raises:
        UserError: the launcher did not say all that it must.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=_LONGEST)
    except ValueError as error:  # a variable is missing
        raise UserError(
            f"WORLD_SIZE: is {count}, and there is no such group ({error}); start with torchrun, or unset it."
        ) from error
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
