"""The client of `bench_http`: runners in one process against a store at an address, figures as one line of JSON.

`python http_load.py URL SERVER_PID RUNNERS SPANS SECONDS ENQUEUED`. It uses the public API alone, so that the interpreter which
runs it chooses the implementation whose client is measured. Each runner does the store methods of a small rollout in turn:
dequeue, for each span the next sequence id and `add_span`, then `update_attempt`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import psutil

import agentlightning as agl

WARM_SECONDS = 1.0
TOGETHER = 500


class Times:
    """Seconds of each claim and of each `add_span`."""

    def __init__(self) -> None:
        self.claims: list[float] = []
        self.spans: list[float] = []


def used(process: psutil.Process) -> float:
    """Processor seconds of all threads of a process so far, in user and kernel mode."""
    times = process.cpu_times()
    return times.user + times.system


async def runner(store: Any, name: str, spans: int, until: float, times: Times) -> int:
    """Work until the time is over; the number of rollouts."""
    done = 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        claimed = await store.dequeue_rollout(name)
        times.claims.append(time.perf_counter() - began)
        if claimed is None:
            raise RuntimeError("the queue is empty: enqueue more")
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        for number in range(spans):
            sequence = await store.get_next_span_sequence_id(rollout_id, attempt_id)
            span = agl.Span.from_attributes(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                sequence_id=sequence,
                name="openai.chat.completion",
                attributes={"gen_ai.prompt.0.content": "why is the sky blue? " * 10, "number": number},
                start_time=time.time(),
                end_time=time.time(),
            )
            began = time.perf_counter()
            await store.add_span(span)
            times.spans.append(time.perf_counter() - began)
        await store.update_attempt(rollout_id, attempt_id, status="succeeded")
        done += 1
    return done


async def main(url: str, server: psutil.Process, runners: int, spans: int, seconds: float, enqueued: int) -> None:
    """Enqueue, warm up, measure, print."""
    store: Any = agl.LightningStoreClient(url)
    for _ in range(enqueued // TOGETHER):
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input={"question": "?"}) for _ in range(TOGETHER)])
    warm = Times()
    names = [f"W-{number}" for number in range(runners)]
    until = time.perf_counter() + WARM_SECONDS
    await asyncio.gather(*(runner(store, name, spans, until, warm) for name in names))
    times, before, own, began = Times(), used(server), time.process_time(), time.perf_counter()
    done = await asyncio.gather(*(runner(store, name, spans, began + seconds, times) for name in names))
    figures = {
        "rollouts": sum(done),
        "seconds": time.perf_counter() - began,
        "client_seconds": time.process_time() - own,
        "server_seconds": used(server) - before,
        "claims": times.claims,
        "spans": times.spans,
    }
    await store.close()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    pid, one, two, three, four = sys.argv[2:]
    asyncio.run(main(sys.argv[1], psutil.Process(int(pid)), int(one), int(two), float(three), int(four)))
