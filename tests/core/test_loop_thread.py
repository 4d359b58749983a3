"""Event loops in threads: calls from other threads end when the loop does, and a task that is cancelled has no error."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentlightning.core.errors import LogClosed, StorageError
from agentlightning.core.loop_thread import LoopTask, LoopThread, run_to_end


async def _answer() -> int:
    return 5


def test_a_call_returns_what_the_coroutine_does_and_ends_with_its_time() -> None:
    thread = LoopThread("test-loop")
    try:
        assert thread.call(_answer()) == 5 and not thread.inside
        with pytest.raises(StorageError, match="0.01 s"):
            thread.call(asyncio.sleep(100), 0.01)

        async def inside() -> bool:
            with pytest.raises(RuntimeError, match="own thread"):
                thread.call(_answer())
            return thread.inside

        assert thread.call(inside())
    finally:
        thread.stop()


def test_a_call_that_waits_and_one_after_the_stop_raise_that_the_log_is_closed() -> None:
    thread = LoopThread("test-loop")
    begun = threading.Event()
    refusals: list[LogClosed] = []

    async def forever() -> None:
        begun.set()
        await asyncio.sleep(1000)

    def call() -> None:
        try:
            thread.call(forever())
        except LogClosed as error:
            refusals.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(10)
    thread.stop()
    caller.join(10)
    assert len(refusals) == 1
    thread.stop()
    with pytest.raises(LogClosed):
        thread.call(_answer())


def test_a_cancelled_task_has_no_error_and_a_failed_one_has_its_own() -> None:
    ended = threading.Event()
    task = LoopTask("test-task", lambda: asyncio.sleep(1000), lambda task: ended.set())
    task.start()
    task.cancel()
    assert ended.wait(10) and task.done.is_set() and task.error is None

    async def fail() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        run_to_end("test-task", fail)
