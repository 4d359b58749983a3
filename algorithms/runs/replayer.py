"""The replayer: a recorded run is played to an algorithm or a subscriber, with no runner and no model.

    report = await agl.Replayer("sqlite:///./.agl/log.db").replay("run-5f0c", my_algorithm)
    report.raise_if_departed()

The recorded completions, spans and resources are what the algorithm sees; what it decides is compared with what it
decided then. The first difference ends the replay and is named.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, cast

from ...core.errors import Departed, InvalidInput, RecordEnds
from ...core.importing import find
from ...core.log.interface import Log
from ...core.log.open_log import address_of, open_log
from ...core.model.resources import validate_resources
from ...core.model.rollout import Dataset
from ...projections.history.past_store import PastStore
from ...projections.history.run_index import RunBook, datasets_of, find_run
from ...projections.spans.blobs import NO_LIMIT_MB, Blobs
from ..adapters.triplets import TracerTraceToTriplet
from ..algorithm import Algorithm, seeded
from ..subscribers.decorator import Subscriber
from .recording import Recording, recordings
from .recording_store import best_content
from .replay_store import ReplayStore

__all__ = ["ReplayReport", "Replayer", "load_algorithm", "load_dataset"]

Replayed = Union[Algorithm, "Subscriber[Any]"]


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found.

    `decisions`: how many were made as recorded, a batch of rollouts counted one by one, of `recorded`. `departed`: the
    first difference, None where there was none. `ended`: why the record did not reach to the end of the algorithm, for a
    run that was broken off; None where it did.
    """

    run_id: str
    decisions: int
    recorded: int
    departed: Departed | None = None
    ended: RecordEnds | None = None

    @property
    def same(self) -> bool:
        """True where every decision of the record was made again, and no other one."""
        return self.departed is None

    def raise_if_departed(self) -> None:
        """Raises the :class:`Departed` of the first difference."""
        if self.departed is not None:
            raise self.departed


class Replayer:
    """Replays the runs of one log: an address (`sqlite:///…`, `kafka://…`), a file, or a log that is open.

    `environment`: as in `open_store`, for the security options of a Kafka. The log is only read. One that was opened here
    is closed by :meth:`close`; use the replayer as a context manager.
    """

    def __init__(self, log: Log | str | os.PathLike[str], *, environment: Mapping[str, str] | None = None) -> None:
        self._owned = isinstance(log, str | os.PathLike)
        self.log = _opened(address_of(log), environment) if isinstance(log, str | os.PathLike) else log
        self._fetch = Blobs(self.log, NO_LIMIT_MB).fetch

    def recordings(self) -> dict[str, Recording]:
        """Every run of the log, by its id. Blocks while the log is folded once."""
        return recordings(self.log, RunBook(self.log, self._fetch))

    def recording(self, run: str) -> Recording:
        """One run, by its id, its name or the beginning of its id. Raises `NotFound`, `InvalidInput` for several."""
        found = self.recordings()
        return found[find_run({name: one.run for name, one in found.items()}, run).run_id]

    def store_at(self, position: int) -> PastStore:
        """The store as it was when `position` control records were in the log: it answers and changes nothing."""
        past = PastStore(self.log)
        past.past.to(position)
        return past

    async def replay(
        self,
        run: str,
        algorithm: Replayed,
        *,
        train_dataset: Dataset[Any] | None = None,
        val_dataset: Dataset[Any] | None = None,
        adapter: Any = None,
    ) -> ReplayReport:
        """Play `run` to `algorithm`, which is an `Algorithm` (`@algo` makes one) or an `@agl.subscriber` function.

        Datasets default to those that the run was recorded with, the adapter to the trainer's. The seed is that of the run,
        `random` (and numpy's, where it is loaded) is seeded with it. Raises `NotFound` for no such run, and what the
        algorithm raises for reasons of its own.
        """
        recording = await asyncio.to_thread(self.recording, run)
        store = ReplayStore(self.log, recording)
        try:
            await self._play(algorithm, store, train_dataset, val_dataset, adapter)
            return _report(recording, store, algorithm)
        finally:
            store.past.close()

    async def _play(self, algorithm: Replayed, store: ReplayStore, train: Any, val: Any, adapter: Any) -> None:
        recording = store.recording
        try:
            with seeded(recording.run.seed):
                if isinstance(algorithm, Subscriber):
                    await self._hand(algorithm, store)
                else:
                    recorded = await asyncio.to_thread(datasets_of, self.log, recording.run, self._fetch)
                    train = train if train is not None else recorded.get("train")
                    val = val if val is not None else recorded.get("val")
                    algorithm.set_adapter(adapter if adapter is not None else TracerTraceToTriplet())
                    await self._run(algorithm, store, train, val, recorded.get("initial_resources"))
        except Exception:
            # The script keeps what stopped it, also where the algorithm made another error of it, or swallowed it.
            if store.script.departed is None and store.script.ended is None:
                raise

    async def _run(self, algorithm: Algorithm, store: ReplayStore, train: Any, val: Any, initial: Any) -> None:
        run = store.recording.run
        algorithm.set_best_resources(None)
        algorithm.set_seed(run.seed)
        algorithm.set_store(store)
        if initial is not None:
            algorithm.set_initial_resources(validate_resources(initial))
        elif run.resources_id is not None:
            first = await store.get_resources_by_id(run.resources_id, run.resources_version)
            if first is not None:
                algorithm.set_initial_resources(first.resources)
        if algorithm.is_async():
            await cast(Any, algorithm.run(train, val))
        else:
            result = await asyncio.to_thread(algorithm.run, train, val)
            if inspect.isawaitable(result):
                await result

    async def _hand(self, subscriber: Subscriber[Any], store: ReplayStore) -> None:
        """The facts from the opening of the run on, or from where its group stood then, one after the other."""
        run = store.recording.run
        parameters: Any = run.parameters
        since = cast("dict[str, Any]", parameters).get("since") if isinstance(parameters, dict) else None
        async for fact in store.subscribe(subscriber.types or None, since=since if isinstance(since, int) else run.opened_at):
            await subscriber.take(fact, store)

    def close(self) -> None:
        """Close the log, where it was opened here. Idempotent."""
        if self._owned:
            self.log.close()

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(url: str, environment: Mapping[str, str] | None) -> Log:
    address = url if "://" in url else f"sqlite:///{url}"
    if address.startswith(("http://", "https://", "memory:")):
        raise InvalidInput(f"{url} is not the address of a log that can be replayed: give its file or its Kafka")
    return open_log(address, readonly=True, environment=environment)


def _report(recording: Recording, store: ReplayStore, algorithm: Replayed) -> ReplayReport:
    script = store.script
    departed, ended = script.departed, script.ended
    missing = script.next
    if departed is None and ended is None and missing is not None:
        departed = Departed(position=missing.position, expected=store.described(missing), got="nothing more")
    if departed is None and ended is None and recording.best is not None and isinstance(algorithm, Algorithm):
        expected, got = recording.best.content, best_content(algorithm.get_best_resources())
        if got != expected:
            departed = Departed(
                position=recording.best.position, expected=f"the best resources {expected}", got=f"{got or 'none'}"
            )
    return ReplayReport(recording.run.run_id, script.made, len(recording.steps), departed, ended)


def load_algorithm(spec: str) -> Replayed:
    """An `Algorithm`, an instance of a class of such, or a subscriber. Raises `InvalidInput` for anything else."""
    found = find(spec, "An algorithm", "algo")
    if isinstance(found, type) and issubclass(found, Algorithm):
        try:
            found = found()
        except TypeError as error:
            raise InvalidInput(f"{spec} is a class that needs arguments ({error}); name an instance of it") from error
    if not isinstance(found, (Algorithm, Subscriber)):
        raise InvalidInput(f"{spec} is neither an algorithm (mark it with @agl.algo) nor a subscriber")
    return cast("Replayed", found)


def load_dataset(spec: str) -> Any:
    """The dataset that `spec` names, or what the function that it names returns. Raises `InvalidInput`."""
    found = find(spec, "A dataset", "name")
    return found() if callable(found) else found
