"""Fixtures of tests that start processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forking import Ranks


@pytest.fixture(scope="session")
def starter() -> Iterator[Ranks]:
    """Starts runs of real processes in a second each."""
    ranks = Ranks()
    yield ranks
    ranks.close()
