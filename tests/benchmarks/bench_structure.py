"""How many files of the package a call or an attempt enters, and how often it changes from one file to another.

`python -m tests.benchmarks.bench_structure`. Counted with `sys.setprofile` in all threads: over client, server and store for
the calls that a runner and an algorithm make all day, and over `runners/` for one attempt without a model call. Figures of
structure, no timing: the machine does not matter.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import agentlightning as agl

ROOT = os.path.dirname(os.path.abspath(agl.__file__)) + os.sep
REPEATS = 5
OTHERS = re.compile(r"/\.venv/|/tests/")


class Entered:
    """The files that any thread enters while the block runs; `changes` counts each step from one file into another.

    A thread is profiled from its start, so `watch` is called before the first thread of a server or a store.
    """

    now: Entered | None = None
    _last = threading.local()

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.changes = 0

    @classmethod
    def watch(cls) -> None:
        threading.setprofile(cls._seen)
        sys.setprofile(cls._seen)

    def __enter__(self) -> Entered:
        Entered.now = self
        return self

    def __exit__(self, *_: object) -> None:
        Entered.now = None

    @classmethod
    def _seen(cls, frame: FrameType, event: str, _: object) -> None:
        file, entered = frame.f_code.co_filename, cls.now
        if entered is None or event != "call" or not file.startswith(ROOT) or OTHERS.search(file):
            return
        entered.files.add(file.removeprefix(ROOT))
        entered.changes += getattr(cls._last, "file", file) != file
        cls._last.file = file


def span(rollout: Any) -> agl.Span:
    return agl.Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        sequence_id=0,
        name="x",
        attributes={"a": 1},
    )


async def calls() -> None:
    """Five calls over HTTP on a log in memory."""
    server = agl.LightningStoreServer(agl.InMemoryLightningStore(thread_safe=True), host="127.0.0.1", port=0)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    await client.enqueue_rollout("first")
    first: Any = await client.dequeue_rollout()
    await client.add_span(span(first))
    await client.update_attempt(first.rollout_id, "latest", status="succeeded")

    async def waited() -> None:
        await client.wait_for_rollouts(rollout_ids=[first.rollout_id], timeout=5)

    async def claimed() -> None:
        assert await client.dequeue_rollout() is not None

    made: dict[str, Callable[[], Awaitable[Any]]] = {
        "enqueue_rollout": lambda: client.enqueue_rollout("x"),
        "dequeue_rollout": claimed,
        "add_span": lambda: client.add_span(span(first)),
        "wait_for_rollouts": waited,
        "query_spans": lambda: client.query_spans(first.rollout_id),
    }
    rows: list[tuple[int, float]] = []
    print(f"{'call':20} {'files':>6} {'changes':>8}")
    for name, call in made.items():
        with Entered() as entered:
            for _ in range(REPEATS):
                await call()
            await asyncio.sleep(0.05)
        rows.append((len(entered.files), entered.changes / REPEATS))
        print(f"{name:20} {rows[-1][0]:>6} {rows[-1][1]:>8.0f}")
        if "-v" in sys.argv:
            print(*(f"    {file}" for file in sorted(entered.files)), sep="\n")
    print(f"{'mean':20} {sum(a for a, _ in rows) / len(rows):>6.1f} {sum(b for _, b in rows) / len(rows):>8.1f}")
    await client.close()
    await server.stop()


async def attempts() -> None:
    """One attempt without a model call, with the tracer of a Trainer; the second row is of a runner that has run one."""

    @agl.rollout
    def agent(task: str) -> float:
        return 1.0

    runner = agl.LitAgentRunner[str](tracer=agl.AgentOpsTracer())
    with runner.run_context(agent=agent, store=agl.InMemoryLightningStore(thread_safe=True)):
        for name in ("first attempt", "later attempt"):
            with Entered() as entered:
                await runner.step("x")
            files = sorted(file for file in entered.files if file.startswith("runners"))
            print(f"{name:20} {len(files):>6} of runners/")
            if "-v" in sys.argv:
                print(*(f"    {file}" for file in files), sep="\n")


def fits() -> None:
    """From `Trainer.fit` to the first line of the user's algorithm, in the process that calls it."""

    @agl.rollout
    def agent(task: str) -> float:
        return 1.0

    for strategy in ("shm", "cs"):
        files: list[str] = []

        @agl.algo
        def algorithm(files: list[str] = files) -> None:
            files += sorted(file for file in entered.files if file.startswith("algorithms"))

        store = agl.InMemoryLightningStore(thread_safe=True)
        trainer = agl.Trainer(algorithm=algorithm, strategy=strategy, store=store)
        with Entered() as entered:
            trainer.fit(agent)
        print(f"{'fit, ' + strategy:20} {len(files):>6} of algorithms/")
        if "-v" in sys.argv:
            print(*(f"    {file}" for file in files), sep="\n")


if __name__ == "__main__":
    Entered.watch()
    fits()
    asyncio.run(calls())
    asyncio.run(attempts())
