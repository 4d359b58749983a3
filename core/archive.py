"""A compact table of archived rollouts: id and state hash, 14 bytes each, however many there are.

Finished rollouts leave the fold's hot state (state.py); what stays is enough to tell "archived" from "unknown" and to
check a rollout that is brought back. Entries lie in sorted runs of growing size (a log-structured merge), so memory is
14 bytes an entry and a look-up a few binary searches. Ids of the usual form (`ro-` and 12 hex digits) are stored as
their 6 bytes, others as a 6-byte BLAKE2b of the id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from heapq import merge

KEY_BYTES = 6
HASH_BYTES = 8
ENTRY_BYTES = KEY_BYTES + HASH_BYTES
FRESH_LIMIT = 16_384
"""Entries kept in a dict before they become a sorted run."""

_USUAL = re.compile(r"ro-[0-9a-f]{12}").fullmatch
"""Exactly this form: `bytes.fromhex` alone would take blanks and capitals, and keys of the wrong length."""

GONE = bytes(HASH_BYTES)
"""Marks an entry that was taken out again."""


def key_of(rollout_id: str) -> bytes:
    """The 6-byte key of a rollout id."""
    if _USUAL(rollout_id):
        return bytes.fromhex(rollout_id[3:])
    return blake2b(rollout_id.encode("utf-8", "backslashreplace"), digest_size=KEY_BYTES).digest()


def _find(run: bytes, key: bytes) -> bytes | None:
    low, high = 0, len(run) // ENTRY_BYTES
    while low < high:
        middle = (low + high) // 2
        at = middle * ENTRY_BYTES
        found = run[at : at + KEY_BYTES]
        if found == key:
            return run[at + KEY_BYTES : at + ENTRY_BYTES]
        if found < key:
            low = middle + 1
        else:
            high = middle
    return None


def _entries(run: bytes) -> Iterator[bytes]:
    return (run[at : at + ENTRY_BYTES] for at in range(0, len(run), ENTRY_BYTES))


def _merged(older: bytes, newer: bytes) -> bytes:
    out: list[bytes] = []
    tagged_old = ((entry[:KEY_BYTES], 0, entry) for entry in _entries(older))
    tagged_new = ((entry[:KEY_BYTES], 1, entry) for entry in _entries(newer))
    for key, _, entry in merge(tagged_old, tagged_new):
        if out and out[-1][:KEY_BYTES] == key:
            out[-1] = entry
        else:
            out.append(entry)
    return b"".join(out)


class ArchiveTable:
    """Rollout id -> 8-byte state hash. Deterministic: the same calls leave the same bytes."""

    def __init__(self) -> None:
        self._fresh: dict[bytes, bytes] = {}
        self._runs: list[bytes] = []  # oldest and largest first

    def put(self, rollout_id: str, state_hash: bytes) -> None:
        """Remember a rollout, or replace its hash."""
        self._fresh[key_of(rollout_id)] = state_hash
        if len(self._fresh) >= FRESH_LIMIT:
            self._runs.append(b"".join(key + self._fresh[key] for key in sorted(self._fresh)))
            self._fresh = {}
            while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                newer = self._runs.pop()
                self._runs[-1] = _merged(self._runs[-1], newer)

    def take(self, rollout_id: str) -> None:
        """Forget a rollout; it is hot again."""
        self.put(rollout_id, GONE)

    def get(self, rollout_id: str) -> bytes | None:
        """Return the hash, or None for a rollout that is not archived."""
        key = key_of(rollout_id)
        found = self._fresh.get(key)
        if found is None:
            for run in reversed(self._runs):
                found = _find(run, key)
                if found is not None:
                    break
        return None if found is None or found == GONE else found

    def dump(self) -> list[bytes]:
        """The table for a snapshot: the fresh entries as one more, unsorted, run first."""
        return [b"".join(key + value for key, value in self._fresh.items()), *self._runs]

    @classmethod
    def load(cls, dumped: list[bytes]) -> ArchiveTable:
        """Rebuild what `dump` gave."""
        table = cls()
        table._fresh = {entry[:KEY_BYTES]: entry[KEY_BYTES:] for entry in _entries(dumped[0])}
        table._runs = list(dumped[1:])
        return table
