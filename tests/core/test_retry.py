"""Delays double up to a bound; a call is repeated until it is answered, given up or refused, with one line of each kind."""

from __future__ import annotations

import logging
from itertools import islice

import pytest

from agentlightning.core.errors import NotFound, StoreUnreachable
from agentlightning.core.retry import Backoff, Retry


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise StoreUnreachable("no answer")
        return self.calls


def test_delays_double_up_to_the_longest() -> None:
    assert list(islice(Backoff(0.25, 1.5), 5)) == [0.25, 0.5, 1.0, 1.5, 1.5]
    assert Backoff(0.5, 30.0).delay(10_000) == 30.0


async def test_a_wait_is_two_lines_whatever_the_number_of_tries(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert await Retry("the store", [0.0] * 5, prefix="Spans: ").run(Flaky(3)) == 4
    assert caplog.messages == ["Spans: waiting for the store (no answer)", "Spans: the store answers again"]


async def test_it_gives_up_after_the_last_delay_after_the_limit_and_where_the_store_is_not_healthy() -> None:
    async def ill() -> bool:
        return False

    for retry, tries in (
        (Retry("s", [0.0, 0.0]), 3), (Retry("s", [0.0] * 9, limit_seconds=0.0), 1), (Retry("s", [0.0] * 9, healthy=ill), 1),
    ):  # fmt: skip
        call = Flaky(100)
        with pytest.raises(StoreUnreachable, match="no answer"):
            await retry.run(call)
        assert call.calls == tries


async def test_a_refusal_is_raised_at_once() -> None:
    calls: list[int] = []

    async def refused() -> None:
        calls.append(1)
        raise NotFound("no such rollout")

    with pytest.raises(NotFound):
        await Retry("s", [0.0] * 5).run(refused)
    assert len(calls) == 1
