"""Datasets of any form as an algorithm reads them: sample by sample, or in batches without end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ..core.errors import InvalidInput
from ..core.model.rollout import Dataset

__all__ = ["Row", "Rows", "batch_iter_over_dataset"]

MOST_FAILURES = 10
"""A stream of unknown length that fails so often in a row counts as ended."""
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One sample of a dataset by its number, or ``error``: why it could not be read."""

    number: int
    value: Any = None
    error: Exception | None = None


class Rows:
    """The samples of a dataset of any form, read one by one as they are asked for; each pass reads them anew.

    A table (pandas, polars, Arrow) gives its rows as dicts; what has a length and an index is read by index, as ``Dataset``
    says; anything else is iterated over, and an iterator, which can be read once only, is kept for the passes that follow
    where ``keep`` says that there are some. A sample that cannot be read is the error of its row, and the next one
    follows; a stream that fails ``MOST_FAILURES`` times in a row has ended. InvalidInput for what is no dataset.
    """

    def __init__(self, dataset: Any, *, keep: bool = False) -> None:
        self._dataset = dataset
        self._keep = keep and hasattr(dataset, "__next__")
        self._kept: list[Row] | None = None

    def __iter__(self) -> Iterator[Row]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Row] = []
        for row in _rows(self._dataset):
            if self._keep:
                kept.append(row)
            yield row
        self._kept = kept if self._keep else None


def _rows(dataset: Any) -> Iterator[Row]:
    kind = cast("type[Any]", type(dataset))
    size = None if _is_table(dataset) else _length(dataset)
    if size is not None and hasattr(kind, "__getitem__"):
        for number in range(size):
            try:
                value = dataset[number]
            except Exception as error:
                yield Row(number, error=error)
            else:
                yield Row(number, value)
        return
    rows = _iterated(dataset)
    number = failures = 0
    while failures < MOST_FAILURES:
        try:
            value = next(rows)
        except StopIteration:
            return
        except Exception as error:
            failures += 1
            yield Row(number, error=error)
        else:
            failures = 0
            yield Row(number, value)
        number += 1


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # a stream
        return None


def _is_table(dataset: Any) -> bool:
    return any(hasattr(dataset, name) for name in ("iterrows", "iter_rows", "to_batches", "iloc"))


def _iterated(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "itertuples"):  # pandas: its iterrows makes one type of all numbers of a row
        names = list(dataset.columns)
        return (dict(zip(names, values)) for values in dataset.itertuples(index=False, name=None))
    if hasattr(dataset, "iterrows"):
        return (row for _, row in dataset.iterrows())
    if hasattr(dataset, "iter_rows"):  # polars
        return iter(dataset.iter_rows(named=True))
    if hasattr(dataset, "to_batches"):  # Arrow
        return (row for batch in dataset.to_batches() for row in batch.to_pylist())
    try:
        return iter(dataset)
    except TypeError:
        kind = type(dataset).__name__
        raise InvalidInput(f"a {kind} is no dataset: it takes a length and an index, or an iterator") from None


def batch_iter_over_dataset(dataset: Dataset[T], batch_size: int) -> Iterator[Sequence[T]]:
    """Batches of ``batch_size`` without end, from one shuffled pass after the other (``random`` decides).

    No batch has an index twice; what is left of a pass is the beginning of the next batch. Where a batch is at least as
    large as the dataset, each is the whole dataset, shuffled anew. ValueError for an empty dataset or batch.
    """
    length = len(dataset)
    if length == 0 or batch_size < 1:
        raise InvalidInput(f"There is no batch of {batch_size} of {length} samples")
    indices = list(range(length))
    if batch_size >= length:
        while True:
            random.shuffle(indices)
            yield [dataset[index] for index in indices]
    batch: list[int] = []
    waiting: list[int] = []
    while True:
        if not waiting:
            random.shuffle(indices)
            waiting = list(indices)
        # What the batch has already from the pass before waits for the next one; nothing of it is lost.
        taken = next((place for place, index in enumerate(waiting) if index not in batch), None)
        if taken is None:
            random.shuffle(indices)
            waiting += indices
            continue
        batch.append(waiting.pop(taken))
        if len(batch) == batch_size:
            yield [dataset[index] for index in batch]
            batch = []
