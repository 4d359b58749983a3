"""The recorder of runs: records in the log that a run was opened, what its algorithm decided, and how it ended.

A Trainer opens a run, gives its algorithm the store that `bind` returns, and closes the run:

    recorder = recorder_for(store)
    run_id = await recorder.opened(RunStart(name="capitals", algorithm="app:search", seed=7))
    algorithm.set_store(recorder.bind(run_id))        # what is enqueued and published through it belongs to the run
    await recorder.decided(run_id, "best.chosen", {"resources_id": "rs-1", "version": 3})
    await recorder.closed(run_id, RunEnd("succeeded", resources_id="rs-1", resources_version=3))
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ...core.errors import InvalidInput, PayloadTooLarge
from ...core.events import payload
from ...core.events.run_events import RUN_ID
from ...core.ids import uuid7_hex
from ...core.model.resources import validate_resources
from ...core.model.rollout import RolloutConfig
from ...core.model.scalars import model_data
from ...core.model.status import QUEUING, RUNNING
from ...core.model.store_interface import LightningStore
from .recording_store import RecordingStore, position_of

logger = logging.getLogger(__name__)

MOST_DATASET_MB = 16
MOST_WRAPPERS = 8
MOST_LEFTOVERS = 10_000
ALIVE_SECONDS = 4.0
"""How often the owner of a run shows over HTTP that it is there; the store misses it after 20 s."""
MOST_NAMED = 3
_SOURCES = frozenset({"train_dataset", "val_dataset", "initial_resources"})


@dataclass(frozen=True)
class RunStart:
    """What a run begins with; JSON-like `parameters`. Sizes are numbers of samples, -1 where nobody knows.

    `train_dataset`, `val_dataset` and `initial_resources` are recorded with the run, so that its replay needs them from
    nowhere else. Datasets are lists or tuples there: any other one is read by the algorithm alone, and left out; so is one
    that cannot be recorded (no JSON-like samples, more than `MOST_DATASET_MB`), which a line of the log says.
    `resources_id`: where the run begins with resources that the store has. `own_runners`: no other runners get the
    rollouts of the run.
    """

    name: str = ""
    algorithm: str = ""
    agent: str = ""
    parameters: Any = None
    seed: int | None = None
    resources_id: str | None = None
    resources_version: int | None = None
    train_size: int = -1
    val_size: int = -1
    train_dataset: Any = field(default=None, repr=False)
    val_dataset: Any = field(default=None, repr=False)
    initial_resources: Mapping[str, Any] | None = field(default=None, repr=False)
    own_runners: bool = False


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: `outcome` is `succeeded`, `failed`, `interrupted` or another word; the resources are the best."""

    outcome: str
    resources_id: str | None = None
    resources_version: int | None = None
    summary: Any = None


class RunRecorder(Protocol):
    """Records runs. Each call returns when what it says is durable; several runs may be open at once.

    Raises what the store raises (`StoreUnreachable` once its patience is over, `InvalidPayload`, `PayloadTooLarge`).
    """

    async def opened(self, start: RunStart, run_id: str | None = None) -> str:
        """A run begins; its id, made up where None is given. Opening the same id again changes nothing."""
        ...

    async def decided(self, run_id: str, kind: str, content: Any = None, *, based_on: int | None = None) -> None:
        """The algorithm of the run decided something: `kind` is a past-tense tag such as `best.chosen`.

        `based_on`: how many control records its store had applied when it decided; None: what it has applied now.

        `content` is JSON-like and is what a replay compares, key by key in any order. What goes through the store of
        `bind` (rollouts enqueued and started, resources added and updated, `store.decided(kind, content)`) is recorded by
        itself. A trainer records the best resources as (`BEST`, `best_content(best)`) of recording_store.py, whenever they are
        named; a replay compares the last ones when the algorithm is done.
        """
        ...

    async def alive(self, run_id: str) -> None:
        """The owner of the run is there. After the first call the run is closed as lost once its owner is gone.

        Over HTTP it has to be repeated every `ALIVE_SECONDS`; a store of this process knows by itself that it lives.
        """
        ...

    async def closed(self, run_id: str, end: RunEnd) -> None:
        """The run is over. The first closing counts, and one by the owner more than one as lost."""
        ...

    def bind(self, run_id: str, own_runners: bool = False, config: RolloutConfig | None = None) -> RecordingStore:
        """The store for the algorithm of this run: everything it enqueues carries the run's id and is a decision.

        `own_runners`: only runners that claim for this run get what it enqueues. `config`: of rollouts that have none.
        """
        ...


class StoreRecorder:
    """A `RunRecorder` over a store that keeps runs: `EventLogStore`, one over HTTP, or a wrapper of such a one."""

    def __init__(self, store: LightningStore) -> None:
        self._store: Any = store
        self._run_store = run_store_of(store)
        if self._run_store is None:
            raise InvalidInput(f"{type(store).__name__} keeps no runs")

    async def opened(self, start: RunStart, run_id: str | None = None) -> str:
        done = await self._run_store.record_run_event("run.opened", run_id, await asyncio.to_thread(_fields_of, start))
        return done["run_id"]

    async def decided(self, run_id: str, kind: str, content: Any = None, *, based_on: int | None = None) -> None:
        known = position_of(self._run_store) if based_on is None else based_on
        fields = {"kind": kind, "content": content, "based_on": known}
        await self._run_store.record_run_event("algorithm.decided", run_id, fields)

    async def alive(self, run_id: str) -> None:
        await self._run_store.record_run_event("run.beat", run_id)

    async def closed(self, run_id: str, end: RunEnd) -> None:
        await self._run_store.record_run_event("run.closed", run_id, asdict(end))

    def bind(self, run_id: str, own_runners: bool = False, config: RolloutConfig | None = None) -> RecordingStore:
        return RecordingStore(self._store, run_id, self.decided, own_runners, config)


def _fields_of(start: RunStart) -> dict[str, Any]:
    fields: dict[str, Any] = {name: value for name, value in vars(start).items() if name not in _SOURCES}
    if not start.own_runners:
        del fields["own_runners"]  # which stores of older releases refuse
    datasets = {
        name: _samples(name, dataset)
        for name, dataset in (("train", start.train_dataset), ("val", start.val_dataset))
        if dataset is not None
    }
    for name, dataset in (("train_size", start.train_dataset), ("val_size", start.val_dataset)):
        if dataset is not None and fields[name] < 0:
            fields[name] = _size(dataset)
    kept: dict[str, Any] = {name: samples for name, samples in datasets.items() if samples is not None}
    if start.initial_resources is not None:
        found = validate_resources(start.initial_resources)
        kept["initial_resources"] = {name: model_data(resource) for name, resource in found.items()}
    return {**fields, "datasets": kept} if kept else fields


def _size(dataset: Any) -> int:
    """The number of samples; -1 where the dataset does not say."""
    try:
        return len(dataset)
    except Exception as error:
        # A stream has no length, and what a length of somebody else's raises is the algorithm's business.
        logger.debug("A dataset of type %s does not say its size: %s", type(dataset).__name__, error)
        return -1


def _samples(name: str, dataset: Any) -> list[Any] | None:
    """The samples as a replay gets them; None for what is left out.

    Reading any other dataset than a list may cost time, fail, or use it up, and the algorithm may want a few rows of it.
    """
    if type(dataset) not in (list, tuple):
        kind = type(dataset).__name__
        logger.info("The run is recorded without its %s dataset (a %s), which a replay has to be given.", name, kind)
        return None
    samples: list[Any] = []
    size = 0
    try:
        for sample in dataset:
            encoded = payload.encode(sample, f"a sample of the {name} dataset", MOST_DATASET_MB)
            size += len(encoded)
            if size > MOST_DATASET_MB * 1_000_000:
                raise PayloadTooLarge(f"it has more than {MOST_DATASET_MB} MB")
            samples.append(payload.decode(encoded))
    except Exception as error:
        # A sample may be an object of somebody else's that raises anything.
        logger.info("The run is recorded without its %s dataset, which a replay has to be given: %s", name, error)
        return None
    return samples


class NoRecorder:
    """A `RunRecorder` for stores that keep no runs: the fit goes on, and nothing of it can be listed or replayed."""

    def __init__(self, store: LightningStore) -> None:
        self._store = store

    async def opened(self, start: RunStart, run_id: str | None = None) -> str:
        logger.info("%s keeps no runs: this one cannot be replayed.", type(self._store).__name__)
        return run_id or new_run_id()

    async def decided(self, run_id: str, kind: str, content: Any = None, *, based_on: int | None = None) -> None:
        """Nothing is kept."""

    async def alive(self, run_id: str) -> None:
        """Nothing is kept."""

    async def closed(self, run_id: str, end: RunEnd) -> None:
        """Nothing is kept."""

    def bind(self, run_id: str, own_runners: bool = False, config: RolloutConfig | None = None) -> RecordingStore:
        return RecordingStore(self._store, run_id, None, config=config)


def recorder_for(store: LightningStore) -> RunRecorder:
    """The recorder that fits a store."""
    return NoRecorder(store) if run_store_of(store) is None else StoreRecorder(store)


async def leftovers(store: LightningStore, run_id: str) -> str:
    """One line about open rollouts that are not of this run, nor of another run that is open; empty where there are none.

    At most `MOST_LEFTOVERS` are counted.
    """
    page = await store.query_rollouts(status_in=sorted(QUEUING | RUNNING), limit=MOST_LEFTOVERS)
    of_runs = Counter((one.metadata or {}).get(RUN_ID) for one in page)
    if not of_runs:
        return ""
    run_store = run_store_of(store)
    runs: list[dict[str, Any]] = [] if run_store is None else await run_store.query_runs(brief=True)
    for one in [run_id, *(run["run_id"] for run in runs if run["closed_at"] is None)]:
        of_runs.pop(one, None)
    parts = [f"{count:,} {f'of {one}' if one else 'without a run'}" for one, count in of_runs.most_common(MOST_NAMED)]
    if not parts:
        return ""
    more = "" if len(of_runs) <= MOST_NAMED else ", and of others"
    named = next((str(one) for one, _ in of_runs.most_common() if one), None)
    advice = [] if named is None else [f"`agl cancel {named}` cancels those of a run"]
    advice += ["`agl runner MODULE:AGENT` executes those without a run"] if None in of_runs else []
    return f"Open rollouts of before are not executed by this run: {', '.join(parts)}{more}. {', '.join(advice)}."


def new_run_id() -> str:
    """The id of a run that is to be opened."""
    return f"run-{uuid7_hex()[-12:]}"


def claims_for_runs(store: LightningStore) -> bool:
    """Whether a store keeps runs, and hands out the rollouts of one run only where it is asked to."""
    return bool(store.capabilities.get("run_claims", False)) and run_store_of(store) is not None


def run_store_of(store: Any) -> Any:
    """The store itself, or the one behind it, that keeps runs; None where none does."""
    for _ in range(MOST_WRAPPERS):
        if store is None or hasattr(store, "record_run_event"):
            return store
        store = getattr(store, "store", None)
    return None
