"""One demo from start to proof: the store in this process, a model, two runners, the search, and a second opinion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...core.ids import uuid7_hex
from ...core.log.private_files import make_folder
from ...core.model.resources import LLM
from ...projections.store.store import EventLogStore
from ...rest.open_store import open_store
from ...rest.server.server import LightningStoreServer
from . import model, proof, worker
from .agent import API_KEY_NAME
from .board import Board, Key
from .candidates import candidates
from .history import RunName, close_open, earlier_runs
from .processes import Child, ChildFailed
from .screen import Screen
from .search import Outcome, Plan, Search

T = TypeVar("T")

RUNNERS = 2
_SAMPLING = {"temperature": 0, "max_tokens": 2, "stop": ["\n"]}


@dataclass(frozen=True)
class Options:
    """What the command line chose. `base_url` None: the model on this machine."""

    folder: Path
    plan: Plan
    base_url: str | None = None
    model: str = model.MODEL_NAME
    api_key_env: str = "OPENAI_API_KEY"
    chat: bool = False
    fresh: bool = False

    @property
    def url(self) -> str:
        """The address of the log, which all demos in this folder share."""
        return f"sqlite:///{self.folder / 'log.db'}"


@dataclass(frozen=True)
class Finished:
    """A demo that ran to its end; `difference` is empty where the second process found the same."""

    board: Board
    outcome: Outcome
    live: proof.Evidence
    folded: proof.Evidence
    difference: str
    first_reward_seconds: float | None


async def run_demo(options: Options, screen: Screen) -> Finished:
    """Runs the demo. Raises AgentLightningError where something needed is not there or ends by itself."""
    make_folder(options.folder)
    async with AsyncExitStack() as running:
        serving = await _start_model(options, running)
        store = open_store(options.url)
        assert isinstance(store, EventLogStore)
        running.callback(store.close)
        name, known = await _take_up(store, options, screen)
        server = LightningStoreServer(store, host="127.0.0.1", port=0)
        running.push_async_callback(server.stop)
        await server.start()
        health = _Health(screen, serving, await _start_runners(server.endpoint, options, running))
        base_url = options.base_url if serving is None else await health.while_it_lasts(serving.answer())
        assert base_url is not None
        screen.say(
            f"model {options.model} at {base_url}, {RUNNERS} runners, store at {server.endpoint} on {options.url}"
        )
        search = Search(
            store,
            run=name,
            plan=options.plan,
            llm=LLM(endpoint=base_url, model=options.model, sampling_parameters=dict(_SAMPLING)),
            candidates=candidates()[: options.plan.prompts],
            known=known,
            changed=screen.changed,
        )
        outcome = await health.while_it_lasts(search.run())
    # The store is closed: what follows compares its last state with what the file says.
    position, fingerprint = store.fingerprint()
    live = proof.Evidence(position, fingerprint, search.rewards)
    screen.say("the store is closed; a second process folds its log from the first event")
    folded = await second_opinion(options)
    return Finished(search.board, outcome, live, folded, proof.difference(live, folded), screen.first_reward_seconds)


async def second_opinion(options: Options) -> proof.Evidence:
    """What a new process reads from the file. Raises ChildFailed where it cannot be read."""
    child = await Child.start("proof", options.folder, proof.__name__, options.url, answers=True, environment={})
    try:
        return proof.Evidence(**json.loads(await child.answer()))
    finally:
        await child.stop()


async def _start_model(options: Options, running: AsyncExitStack) -> Child | None:
    if options.base_url is not None:
        return None
    arguments = ["--model-file", str(model.find_model_file()), "--log-file", str(options.folder / "model.log")]
    child = await Child.start("model", options.folder, model.__name__, *arguments, answers=True, environment={})
    running.push_async_callback(child.stop)
    return child


async def _start_runners(store_url: str, options: Options, running: AsyncExitStack) -> list[Child]:
    arguments = ["--store", store_url, *(["--chat"] if options.chat else [])]
    environment = {API_KEY_NAME: options.api_key_env}
    children: list[Child] = []
    for number in range(RUNNERS):
        child = await Child.start(
            f"runner-{number}", options.folder, worker.__name__, *arguments, "--worker-id", str(number),
            environment=environment,
        )  # fmt: skip
        running.push_async_callback(child.stop)
        children.append(child)
    return children


async def _take_up(store: EventLogStore, options: Options, screen: Screen) -> tuple[RunName, dict[Key, float]]:
    """Says what earlier demos left, and goes on with the last one if it was interrupted and is of the same kind."""
    runs = await earlier_runs(store)
    name = RunName(uuid7_hex(), options.plan.name, options.model)
    if not runs:
        screen.say(f"a new log: {options.url}")
        return name, {}
    last = runs[-1]
    for run in runs:
        await close_open(store, run)
    done = sum(run.complete(options.plan.test_reviews) for run in runs)
    screen.say(
        f"the log holds {store.report()['events']} control events: {_count(len(runs), 'earlier demo')}, {done} finished"
    )
    same = (last.name.plan, last.name.model) == (name.plan, name.model)
    if options.fresh or not same or last.complete(options.plan.test_reviews):
        return name, {}
    screen.say(
        f"the last one was interrupted: {_count(len(last.known), 'reward')} are kept, "
        f"{_count(len(last.open_ids), 'open question')} will be asked again"
    )
    return last.name, last.known


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _Health:
    """Watches the other processes: one runner may die and the rest goes on, without a model or any runner nothing can."""

    def __init__(self, screen: Screen, model_server: Child | None, runners: list[Child]) -> None:
        self._screen = screen
        self._model_server = model_server
        self._runners = runners

    async def while_it_lasts(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; raises ChildFailed instead once it could not come any more."""
        doing = asyncio.create_task(work)
        runners = {asyncio.create_task(runner.ended()): runner for runner in self._runners}
        watching: set[asyncio.Task[Any]] = {doing, *runners}
        if self._model_server is not None:
            watching.add(asyncio.create_task(self._model_server.ended()))
        try:
            while True:
                done, watching = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
                if doing in done:
                    return doing.result()
                for task in done:
                    self._bear(task.result(), runners.pop(task, None))
        finally:
            for task in (doing, *watching):
                task.cancel()
            await asyncio.gather(doing, *watching, return_exceptions=True)

    def _bear(self, failure: ChildFailed, runner: Child | None) -> None:
        """Goes on without a runner as long as there is another."""
        if runner is None or len(self._runners) == 1:
            raise failure
        self._runners.remove(runner)
        self._screen.say(f"{failure.headline}; the other one goes on, and what it had in hand is asked again")
