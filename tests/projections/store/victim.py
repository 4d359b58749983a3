"""A process that is killed: it works on a store file and says on stdout what was acknowledged, line by line."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time

import agentlightning as agl
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store


def say(*words: object) -> None:
    """One whole line at once, so that a kill cannot tear it from what was acknowledged before."""
    os.write(1, (json.dumps(words) + "\n").encode())


async def work(store: EventLogStore, number: int) -> None:
    """Every kind of mutation, again and again, each reported after it returned."""
    chance = random.Random(number * 1000 + os.getpid())
    while True:
        rollout = await store.enqueue_rollout({"by": number})
        say("rollout", rollout.rollout_id)
        claimed = await store.dequeue_rollout(f"w{number}")
        if claimed is None:
            continue
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        say("claim", rollout_id, attempt_id, claimed.attempt.sequence_id)
        for _ in range(chance.randrange(3)):
            span = agl.Span.from_attributes(attributes={}, rollout_id=rollout_id, attempt_id=attempt_id)
            stored = await store.add_span(span)
            assert stored is not None
            say("span", rollout_id, stored.span_id, stored.sequence_id)
        if chance.random() < 0.1:
            made = await store.update_resources(f"r{number}", {"p": str(chance.random())})
            say("resources", made.resources_id, made.version)
        if chance.random() < 0.8:
            status = chance.choice(["succeeded", "failed"])
            await store.update_attempt(rollout_id, attempt_id, status=status)  # type: ignore[arg-type]
            say("end", rollout_id, attempt_id, status)


async def main(path: str) -> None:
    began = time.perf_counter()
    store = open_store(f"sqlite:///{path}")
    assert isinstance(store, EventLogStore)
    await store.enqueue_rollout("first answer")
    say("serving", time.perf_counter() - began)
    await asyncio.gather(*(work(store, number) for number in range(8)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
