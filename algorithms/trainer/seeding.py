"""The seed of a run: the process-wide generators as a fit and its replay find them, put back afterwards."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Generator
from typing import Any

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(seed: int | None) -> Generator[None, None, None]:
    """Seed `random`, and numpy's where it is loaded; None leaves them as they are.

    They belong to the whole process: agents in threads beside the algorithm draw from them too, and so does the client of a
    Kafka. An algorithm that has to be repeated exactly makes a `random.Random(seed)` of its own.
    """
    if seed is None:
        yield
        return
    numpy: Any = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy is not None else None
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        if numpy is not None:
            numpy.random.set_state(before[1])
