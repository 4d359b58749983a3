"""Identifiers: their form, and the order of command ids."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import uuid

import pytest

from agentlightning.core import ids


@pytest.mark.parametrize(
    ("draw", "form"),
    [
        (ids.rollout_id, r"ro-[0-9a-f]{12}"),
        (ids.attempt_id, r"at-[0-9a-f]{8}"),
        (ids.resources_id, r"rs-[0-9a-f]{12}"),
        (ids.trace_id, r"[0-9a-f]{32}"),
        (ids.span_id, r"[0-9a-f]{16}"),
        (ids.uuid7_hex, r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}"),
    ],
)
def test_ids_have_their_documented_form_and_differ(draw: object, form: str) -> None:
    assert callable(draw)
    drawn = {draw() for _ in range(200)}
    assert len(drawn) == 200
    assert all(isinstance(one, str) and re.fullmatch(form, one) for one in drawn)


@pytest.mark.parametrize("length", [1, 12, 40])
def test_a_generated_id_has_the_asked_length(length: int) -> None:
    assert re.fullmatch(rf"[0-9a-f]{{{length}}}", ids.generate_id(length))


@pytest.mark.parametrize("length", [0, -1, 41])
def test_a_length_that_sha1_cannot_give_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="1 to 40"):
        ids.generate_id(length)


def test_command_ids_are_uuids_of_version_7_with_the_wall_clock() -> None:
    one = uuid.UUID(bytes=ids.CommandIds(now=lambda: 1_700_000_000.123).next())
    assert (one.version, one.variant) == (7, uuid.RFC_4122)
    assert one.int >> 80 == 1_700_000_000_123


def test_command_ids_grow_within_a_millisecond_and_when_the_clock_goes_back() -> None:
    readings = iter([10.0] * 500 + [9.0] * 500 + [11.0])
    source = ids.CommandIds(now=lambda: next(readings))
    drawn = [source.next() for _ in range(1001)]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 1001
    assert all(uuid.UUID(bytes=one).version == 7 for one in drawn)


def test_command_ids_grow_past_the_end_of_their_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\xff" * size)
    source = ids.CommandIds(now=lambda: 1.0)
    source._tail = (1 << 74) - 2  # pyright: ignore[reportPrivateUsage]
    source._millis = 1000  # pyright: ignore[reportPrivateUsage]
    overflowed, after = source.next(), source.next()
    assert int.from_bytes(overflowed[:6], "big") == 1001
    assert overflowed < after


def test_command_ids_are_unique_over_threads_and_grow_within_each() -> None:
    drawn: list[list[bytes]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(ids.uuid7() for _ in range(500))) for mine in drawn
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in drawn)
    assert len({one for mine in drawn for one in mine}) == 2000


FORK_UNDER_LOCK = """
import os, threading
from agentlightning.core import ids
with ids._SOURCE._lock:
    child = os.fork()
    if child == 0:
        drew = threading.Thread(target=ids.uuid7, daemon=True)
        drew.start()
        drew.join(5)
        os._exit(1 if drew.is_alive() else 0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_draws_though_another_thread_held_the_lock() -> None:
    # In a process of its own: other libraries' fork handlers are none of this test's business.
    subprocess.run([sys.executable, "-c", FORK_UNDER_LOCK], check=True, timeout=60)
