"""Where a key lies is ours to say, for ever: brokers' clients would disagree."""

from __future__ import annotations

from agentlightning.core.log.topics import partition_of

PINNED = {"default": 7, "ro-000000000000": 10, "ro-0123456789ab": 3, "projekt-ü": 10, "": 0, "\ud800": 11}


def test_the_partition_of_a_key_is_pinned() -> None:
    assert {key: partition_of(key, 12) for key in PINNED} == PINNED
