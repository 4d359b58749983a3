"""A command is found again by its id, whatever characters the caller chose for it."""

from __future__ import annotations

import pytest

from agentlightning.core.errors import ForeignPosition, InvalidInput
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.history.rollout_history import find_rollout
from agentlightning.projections.replica.command_context import (
    SPAN_ENDS,
    Call,
    Position,
    joined,
    number_of,
    raised,
    read_token,
    serve,
)
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.transport import Seen


@pytest.mark.parametrize("command_id", ["plain", '"quoted" \\ ü'])
async def test_the_event_of_a_command_is_found_in_the_log(command_id: str) -> None:
    with EventLogStore(MemoryLog()) as store:
        serve(Call(command_id, None, False, repeatable=True))
        rollout = await store.enqueue_rollout("x")
        assert store.engine.recorded(command_id) is not None
        assert find_rollout(store.engine.log, rollout.rollout_id[:6]) == rollout.rollout_id


HEAD = "0123456789abcdef:00112233aabbccdd:41"


def _answer(position: int, spans: dict[int, int], log_id: str = "0123456789abcdef") -> dict[str, str]:
    head = f"{log_id}:00112233aabbccdd:{position}"
    return {"x-agl-position": joined(head, spans), "x-agl-print": f"{position}:00112233aabbccdd"}


def test_a_token_says_what_it_was_made_of() -> None:
    assert joined(HEAD, {}) == HEAD
    token = joined(HEAD, {3: 1042, 0: 5})
    assert token == f"{HEAD}~3=1042,0=5"
    print_ = bytes.fromhex("00112233aabbccdd")
    assert read_token(token) == Position("0123456789abcdef", print_, 41, {3: 1042, 0: 5})
    assert read_token("0123456789abcdef::41") == Position("0123456789abcdef", None, 41)
    assert (number_of(token), number_of(HEAD), number_of("nothing")) == (41, 41, -1)


@pytest.mark.parametrize("ends", ["~", "~3", "~3=", "~=3", "~3=1,", "~-1=3", "~3=1;4=1", "~3=1e9", "~3=" + "9" * 19])
def test_what_is_no_end_is_refused(ends: str) -> None:
    with pytest.raises(InvalidInput, match="is not a position token"):
        read_token(HEAD + ends)


def test_only_the_ends_that_became_known_last_travel() -> None:
    known = raised({}, {part: 1 for part in range(300)})
    known = raised(known, {290: 7})
    assert list(known)[-1] == 290 and len(known) == SPAN_ENDS
    assert len(joined(HEAD, {part: 10**12 for part in range(1024)})) < 2000
    assert raised(known, {290: 3}) is known


def test_a_client_keeps_the_highest_of_everything_it_was_told() -> None:
    seen = Seen()
    seen.note(_answer(7, {1: 20}))
    seen.note(_answer(5, {1: 10, 2: 30}))  # an older answer that arrives later
    assert seen.token is not None and read_token(seen.token).position == 7
    assert read_token(seen.token).spans == {1: 20, 2: 30}
    seen.forget(seen.token, "http://store", ForeignPosition("another history"))
    assert seen.token is None
    seen.note(_answer(1, {}, log_id="fedcba9876543210"))
    assert seen.token == "fedcba9876543210:00112233aabbccdd:1"
