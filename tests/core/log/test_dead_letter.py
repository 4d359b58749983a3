"""Dead letters: a record of the topic `dead` says all that a person and a retry need."""

from __future__ import annotations

import pytest

from agentlightning.core.errors import InvalidPayload
from agentlightning.core.log.dead_letter import DeadLetter, decode_letter, encode_letter, subscriber_letter_id
from agentlightning.core.log.interface import NewRecord


def letter(**more: object) -> DeadLetter:
    made: dict[str, object] = {
        "id": subscriber_letter_id("g", "7/0"),
        "kind": "subscriber",
        "source": "g",
        "reason": "ValueError: no",
        "time": 1_700_000_000.25,
        "tries": 5,
        "data": {"type": "rollout.completed"},
    }
    return DeadLetter(**{**made, **more})  # type: ignore[arg-type]


def test_a_letter_comes_back_as_it_was() -> None:
    assert decode_letter(encode_letter(letter())) == letter()


def test_headers_say_kind_id_and_reason_to_any_tool() -> None:
    record = encode_letter(letter(reason="two\nlines"))
    assert record.key == "g"
    assert record.timestamp_us == 1_700_000_000_250_000
    assert dict(record.headers) == {"t": "subscriber", "id": "subscriber/g/7/0", "reason": "two lines"}


def test_any_reason_can_be_written() -> None:
    record = encode_letter(letter(reason="\ud800" + "x" * 100_000))
    assert len(record.value) < 20_000
    assert decode_letter(record).reason.startswith("\\ud800")


def test_what_is_no_letter_is_refused_with_its_key() -> None:
    with pytest.raises(InvalidPayload, match="'k' is no dead letter"):
        decode_letter(NewRecord("k", b"\x01", 0))
