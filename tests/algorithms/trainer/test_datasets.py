"""Datasets are read lazily, once, and in the order in which the algorithm asks; nobody asks more of them than it does."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.datasets import MOST_FAILURES, Rows
from agentlightning.core.errors import InvalidInput
from agentlightning.projections.history.run_index import RunBook, datasets_of


class Lazy:
    """A million rows, each from somewhere slow; row 2 cannot be read."""

    def __init__(self, size: int = 1_000_000) -> None:
        self.size = size
        self.read: list[Any] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        if index == 2:
            raise OSError("the disk of row 2 is broken")
        return {"row": index}


class Streaming:
    """No length, no index, and each pass begins anew."""

    def __iter__(self) -> Iterator[Any]:
        return iter([{"row": 0}, {"row": 1}])


class Table:
    """As a pandas.DataFrame: an index is the name of a column."""

    columns = ("question", "n")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: Any) -> Any:
        return {"question": ["a", "b"], "n": [1, 2]}[name]

    def itertuples(self, index: bool, name: Any) -> Iterator[Any]:
        assert not index and name is None
        return iter([("a", 1), ("b", 2)])

    def iterrows(self) -> Iterator[Any]:
        raise AssertionError("it makes one type of all numbers of a row")


class Arrow:
    def to_batches(self) -> list[Any]:
        return [self, self]

    def to_pylist(self) -> list[Any]:
        return [{"q": 1}]


class Polars:
    def iter_rows(self, named: bool) -> Iterator[Any]:
        assert named
        return iter([{"q": 1}])


class Broken:
    """An iterator that goes on after an error, for ever."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Broken:
        return self

    def __next__(self) -> Any:
        self.asked += 1
        if self.asked in (1, 3):
            return self.asked
        raise OSError(self.asked)


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        (["a", "b"], ["a", "b"]),
        ({"a"}, ["a"]),
        ({0: "a", 1: "b"}, ["a", "b"]),
        ((text for text in "ab"), ["a", "b"]),
        (Streaming(), [{"row": 0}, {"row": 1}]),
        (Table(), [{"question": "a", "n": 1}, {"question": "b", "n": 2}]),
        (Arrow(), [{"q": 1}, {"q": 1}]),
        (Polars(), [{"q": 1}]),
        (range(2), [0, 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_of_every_form(dataset: Any, values: list[Any]) -> None:
    rows = list(Rows(dataset))
    assert [row.value for row in rows] == values and [row.number for row in rows] == list(range(len(values)))


def test_one_row_that_cannot_be_read_is_that_rows_error() -> None:
    dataset = Lazy(4)
    assert [(row.number, row.value, type(row.error).__name__) for row in Rows(dataset)] == [
        (0, {"row": 0}, "NoneType"),
        (1, {"row": 1}, "NoneType"),
        (2, None, "OSError"),
        (3, {"row": 3}, "NoneType"),
    ]
    found = list(Rows(Broken()))
    assert [row.value for row in found if row.error is None] == [1, 3]
    assert sum(row.error is not None for row in found) == 1 + MOST_FAILURES, "a stream that is broken for good has ended"
    with pytest.raises(InvalidInput, match="a int is no dataset"):
        list(Rows(7))


def test_an_iterator_is_kept_for_later_passes_only_where_there_are_some() -> None:
    for keep, passes in ((True, [[1, 2], [1, 2]]), (False, [[1, 2], []])):
        rows = Rows(iter([1, 2]), keep=keep)
        assert [[row.value for row in rows] for _ in range(2)] == passes
    lazy = Lazy(2)
    rows = Rows(lazy, keep=True)
    assert [[row.value["row"] for row in rows] for _ in range(2)] == [[0, 1], [0, 1]] and lazy.read == [0, 1, 0, 1]


@agl.algo
async def first_three(store: Any, train_dataset: Any) -> Any:
    rows = train_dataset if not hasattr(train_dataset, "read") else (train_dataset[index] for index in (5, 3, 4, 0))
    made = [await store.enqueue_rollout(row) for row in itertools.islice(rows, 3)]
    await store.wait_for_rollouts([one.rollout_id for one in made], timeout=30)


def fit(dataset: Any, algorithm: Any = first_three, store: Any = None, **more: Any) -> agl.FitResult:
    store = store or agl.InMemoryLightningStore()
    resources: Any = {"prompt": "x"}
    trainer = agl.Trainer(
        algorithm=algorithm, n_runners=1, strategy="shm", store=store, initial_resources=resources, **more
    )
    return trainer.fit(lambda task: 1.0, dataset)  # type: ignore[misc]


def test_a_fit_reads_what_its_algorithm_reads_and_in_its_order() -> None:
    lazy = Lazy()
    assert len(fit(lazy).rewards) == 3 and lazy.read == [5, 3, 4]


@pytest.mark.parametrize("make", [lambda: (n for n in range(5)), lambda: iter("abc"), Streaming, lambda: {1, 2}, list])
def test_a_fit_takes_what_its_algorithm_takes(make: Any) -> None:
    result = fit(make())
    assert result.outcome == "succeeded" and len(result.rewards) == (0 if make is list else len(list(make())[:3]))


class Nasty:
    def model_dump(self, mode: str) -> Any:
        raise RuntimeError("anything")


@pytest.mark.parametrize(
    ("dataset", "size", "kept"),
    [
        (["a", "b"], 2, ["a", "b"]),
        (("a",), 1, ["a"]),
        (Lazy(), 1_000_000, None),
        (Streaming(), -1, None),
        ([Nasty()], 1, None),
        (["x" * 9_000_000, "x" * 9_000_000], 2, None),
    ],
    ids=["list", "tuple", "lazy", "streaming", "nasty", "large"],
)
def test_a_run_is_recorded_with_lists_only(
    dataset: Any, size: int, kept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @agl.algo
    async def nothing(train_dataset: Any) -> None:
        """Reads nothing."""

    store = agl.InMemoryLightningStore()
    with caplog.at_level(logging.INFO):
        assert fit(dataset, nothing, store).outcome == "succeeded"
    (run,) = _runs(store)
    assert run.train_size == size
    found = datasets_of(store.engine.log, run, store.engine.fetch)
    assert found.get("train") == kept
    assert ("recorded without its train dataset" in caplog.text) == (kept is None)
    assert getattr(dataset, "read", []) == []


def _runs(store: Any) -> Any:
    return RunBook(store.engine.log, store.engine.fetch).advance().values()


def test_baseline_leaves_out_the_rows_it_cannot_use(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    baseline = agl.Baseline(n_epochs=2)
    result = fit(Lazy(4), baseline)
    assert len(result.rewards) == 6 and result.mean_reward == 1.0 and result.missing_rewards == 0
    assert caplog.text.count("Left out: row 2 of the train dataset: OSError: the disk of row 2 is broken") == 2
    assert "Mean reward: 1, of 6 rollouts; 0 have no reward." in caplog.text
    result = fit((text for text in "ab"), agl.Baseline(n_epochs=2))
    assert len(result.rewards) == 4
    with pytest.raises(InvalidInput, match=r"No sample can be used. The first: row 0 of the train dataset: KeyError"):
        fit({"question": ["a"]}, agl.Baseline())


def test_a_run_and_its_decisions_may_be_named_after_any_file() -> None:
    name = os.fsdecode(b"caf\xe9.csv")

    @agl.algo
    async def decides(store: Any, train_dataset: Any) -> None:
        made = await store.enqueue_rollout(train_dataset[0])
        await store.wait_for_rollouts([made.rollout_id], timeout=30)
        await store.decided(name, {"text": name})

    store = agl.InMemoryLightningStore()
    assert fit([name], decides, store, name=name).outcome == "succeeded"
    (run,) = _runs(store)
    assert run.name == "caf\\udce9.csv" and [one.kind for one in run.decisions][-1] == "caf\\udce9.csv"


@pytest.mark.parametrize("form", [list, iter, tuple])
def test_many_rollouts_are_enqueued_and_recorded_in_whatever_form_the_store_takes(form: Any) -> None:
    @agl.algo
    async def many(store: Any) -> None:
        asked = form([agl.EnqueueRolloutRequest(input="a"), {"input": "b", "metadata": {"mine": 1}}])
        made = await store.enqueue_many_rollouts(asked)
        await store.wait_for_rollouts([one.rollout_id for one in made], timeout=30)

    store = agl.InMemoryLightningStore()
    result = fit(None, many, store, rollout_config=agl.RolloutConfig(max_attempts=2))
    assert result.outcome == "succeeded" and len(result.rewards) == 2
    (run,) = _runs(store)
    assert [len(one.content["digests"]) for one in run.decisions if one.kind == "rollouts.enqueued"] == [2]
