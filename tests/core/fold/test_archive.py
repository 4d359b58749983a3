"""The table of archived rollouts answers like a dict, and its bytes follow from the calls alone."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.core.fold import archive
from agentlightning.core.fold.archive import ENTRY_BYTES, ArchiveTable, key_of

IDS = [
    *(f"ro-{number:012x}" for number in range(12)), *(f"ro-{number:02x}0000000000" for number in range(51, 256, 51)),
    "mine", "ro-", "ro-ABCDEFABCDEF", "ro-abcdefabcdef", "\ud800",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FRESH_LIMIT", 3)


@given(st.lists(st.tuples(st.sampled_from(IDS), st.none() | st.binary(min_size=8, max_size=8)), max_size=60))
def test_it_answers_like_a_dict_also_after_a_restart(calls: list[tuple[str, bytes | None]]) -> None:
    table, plain = ArchiveTable(), dict[str, bytes]()
    for rollout_id, value in calls:
        if value is None or value == archive.GONE:
            table.take(rollout_id)
            plain.pop(rollout_id, None)
        else:
            table.put(rollout_id, value)
            plain[rollout_id] = value
        restored = ArchiveTable.load(table.dump())
        assert restored.dump() == table.dump()
        table = restored
    for rollout_id in IDS:
        assert table.get(rollout_id) == plain.get(rollout_id)


def test_ids_that_only_look_usual_have_keys_of_their_own() -> None:
    odd = ["ro-12 34 56 78 ", "ro-ABCDEFABCDEF", "ro-abcdefabcdef", "ro-abcdefabcde", "ro-abcdefabcdeg"]
    keys = [key_of(rollout_id) for rollout_id in odd]
    assert all(0 <= key < 1 << 48 for key in keys) and len(set(keys)) == len(odd)


def test_an_archived_rollout_takes_fourteen_bytes() -> None:
    table = ArchiveTable()
    for number in range(300):
        table.put(f"ro-{number:012x}", b"12345678")
    assert sum(map(len, table.dump())) == 300 * ENTRY_BYTES


def test_the_packed_form_is_that_of_older_snapshots() -> None:
    table = ArchiveTable()
    table.put("ro-00000000000b", b"bbbbbbbb")
    table.put("ro-00000000000a", b"aaaaaaaa")
    table.put("ro-000000000001", b"11111111")
    table.put("ro-000000000002", b"22222222")
    in_order = ((1, b"11111111"), (10, b"aaaaaaaa"), (11, b"bbbbbbbb"))
    assert table.dump() == [
        (2).to_bytes(6, "big") + b"22222222", b"".join(key.to_bytes(6, "big") + value for key, value in in_order)
    ]  # fmt: skip


def test_the_runs_of_older_snapshots_are_divided_into_parts() -> None:
    ids = [f"ro-{number:02x}{number:010x}" for number in range(256)]
    older = b"".join(key_of(one).to_bytes(6, "big") + b"older..." for one in ids)
    newer = b"".join(key_of(one).to_bytes(6, "big") + b"newer..." for one in ids[::2])
    table = ArchiveTable.load([b"", older, newer])
    assert [table.get(one) for one in ids] == [b"newer...", b"older..."] * 128
    assert ArchiveTable.load(table.dump()).dump() == table.dump()


def test_a_merge_takes_a_small_part_of_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command waits for it, for more than a second with a million rollouts."""
    sizes: list[int] = []

    class Counted(archive.Run):
        def __init__(self, entries: Iterable[tuple[int, bytes]]) -> None:
            super().__init__(entries)
            sizes.append(len(self))

    monkeypatch.setattr(archive, "Run", Counted)
    table, dice = ArchiveTable(), Random(1)
    for _ in range(30_000):
        table.put(f"ro-{dice.getrandbits(48):012x}", b"12345678")
    assert 30 < max(sizes) < 300
