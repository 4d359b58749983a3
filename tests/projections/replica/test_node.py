"""A node's batches: what is staged until the log takes it goes out as one append."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentlightning.core.log.local.memory import MemoryLog

from ..store.tools import Unclosed, control_values, store_on


class LateLog(Unclosed):
    """Takes what is staged when it is told to, as a log does whose thread is busy."""

    def __init__(self) -> None:
        super().__init__(MemoryLog())
        self.late = False
        self.held: list[Callable[[], None]] = []
        self.sizes: list[int] = []

    def append_staged(self, topic: str, partition: int, take: Any, done: Any) -> None:
        def now() -> None:
            records = take()
            self.sizes.append(len(records))
            self._log.append(topic, partition, records, done)

        if self.late:
            self.held.append(now)
        else:
            now()


async def test_commands_that_come_before_the_log_takes_them_go_out_together_and_in_their_order() -> None:
    log = LateLog()
    with store_on(log) as store:  # pyright: ignore[reportArgumentType]
        before = len(control_values(log))  # pyright: ignore[reportArgumentType]
        log.late, log.sizes = True, []
        commands = [asyncio.ensure_future(store.enqueue_rollout(number)) for number in range(20)]
        await asyncio.sleep(0.1)
        assert len(log.held) == 1 and not any(one.done() for one in commands)
        log.late = False
        log.held.pop()()
        done = await asyncio.gather(*commands)
        assert log.sizes == [20]
        found = await store.query_rollouts(sort_by="start_time")
        assert [one.input for one in found] == [one.input for one in done] == list(range(20))
        assert len(control_values(log)) == before + 20  # pyright: ignore[reportArgumentType]
