"""A compact table of archived rollouts: id and state hash, 16 bytes each, however many there are.

Finished rollouts leave the fold's hot state (state.py); what stays is enough to tell "archived" from "unknown" and to
check a rollout that is brought back. Entries lie in sorted runs of growing size (a log-structured merge), so a look-up is
a few binary searches. Ids of the usual form (`ro-` and 12 hex digits) are stored as
their 6 bytes, others as a 6-byte BLAKE2b of the id. In memory the keys are numbers in an array of their own, which the
standard library bisects quickly: 16 bytes an entry.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain

KEY_BYTES = 6
HASH_BYTES = 8
ENTRY_BYTES = KEY_BYTES + HASH_BYTES
FRESH_LIMIT = 16_384
"""Entries kept in a dict before they become a sorted run."""

STRIDE = 4
"""Entries in each range of a run, about."""

_USUAL = re.compile(r"ro-[0-9a-f]{12}").fullmatch
"""Exactly this form: `bytes.fromhex` alone would take blanks and capitals, and keys of the wrong length."""

GONE = bytes(HASH_BYTES)
"""Marks an entry that was taken out again."""


def key_of(rollout_id: str) -> int:
    """The key of a rollout id, a number of 6 bytes."""
    if _USUAL(rollout_id):
        return int(rollout_id[3:], 16)
    digest = blake2b(rollout_id.encode("utf-8", "backslashreplace"), digest_size=KEY_BYTES).digest()
    return int.from_bytes(digest, "big")


class Run:
    """Entries in order of their keys; never changed. `values` holds 8 bytes for each key.

    Keys are spread evenly, so their first bits tell nearly where one lies: `starts` has the index of the first key of each
    of about `len / STRIDE` equal ranges, and a look-up bisects within one of them.
    """

    __slots__ = ("keys", "shift", "starts", "values")

    def __init__(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Of two entries of one key the later one counts."""
        newest = dict(entries)
        keys = self.keys = array("Q", sorted(newest))
        self.values = b"".join(map(newest.__getitem__, keys))
        bits = max(len(keys) // STRIDE, 1).bit_length()
        shift = self.shift = 8 * KEY_BYTES - bits
        self.starts = array("I", (bisect_left(keys, number << shift) for number in range((1 << bits) + 1)))

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, number: int) -> bytes | None:
        """The hash of a key."""
        keys = self.keys
        part = number >> self.shift
        end = self.starts[part + 1]
        index = bisect_left(keys, number, self.starts[part], end)
        if index == end or keys[index] != number:
            return None
        return self.values[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def entries(self) -> Iterable[tuple[int, bytes]]:
        """Key and hash, in order."""
        values = self.values
        return zip(self.keys, (values[at : at + HASH_BYTES] for at in range(0, len(values), HASH_BYTES)))

    def dump(self) -> bytes:
        """14 bytes an entry: the key, big-endian, and the hash. Column by column, which costs no step for each entry."""
        keys = self.keys[:]
        if sys.byteorder == "little":
            keys.byteswap()
        wide = keys.tobytes()
        packed = bytearray(len(keys) * ENTRY_BYTES)
        skipped = keys.itemsize - KEY_BYTES
        for column in range(KEY_BYTES):
            packed[column::ENTRY_BYTES] = wide[skipped + column :: keys.itemsize]
        for column in range(HASH_BYTES):
            packed[KEY_BYTES + column :: ENTRY_BYTES] = self.values[column::HASH_BYTES]
        return bytes(packed)


def _unpack(packed: bytes) -> Iterable[tuple[int, bytes]]:
    for at in range(0, len(packed), ENTRY_BYTES):
        yield int.from_bytes(packed[at : at + KEY_BYTES], "big"), packed[at + KEY_BYTES : at + ENTRY_BYTES]


class ArchiveTable:
    """Rollout id -> 8-byte state hash. Deterministic: the same calls leave the same bytes."""

    def __init__(self) -> None:
        self._fresh: dict[int, bytes] = {}
        self._runs: list[Run] = []  # oldest and largest first

    def put(self, rollout_id: str, state_hash: bytes) -> None:
        """Remember a rollout, or replace its hash."""
        self._fresh[key_of(rollout_id)] = state_hash
        if len(self._fresh) >= FRESH_LIMIT:
            self._runs.append(Run(self._fresh.items()))
            self._fresh = {}
            while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                newer = self._runs.pop()
                self._runs[-1] = Run(chain(self._runs[-1].entries(), newer.entries()))

    def take(self, rollout_id: str) -> None:
        """Forget a rollout; it is hot again."""
        self.put(rollout_id, GONE)

    def get(self, rollout_id: str) -> bytes | None:
        """Return the hash, or None for a rollout that is not archived."""
        key = key_of(rollout_id)
        found = self._fresh.get(key)
        if found is None:
            for run in reversed(self._runs):
                found = run.get(key)
                if found is not None:
                    break
        return None if found is None or found == GONE else found

    def copied(self) -> ArchiveTable:
        """A table of its own with the same entries; runs never change, so they are shared."""
        made = ArchiveTable()
        made._fresh, made._runs = dict(self._fresh), list(self._runs)
        return made

    def dump(self) -> list[bytes]:
        """The table for a snapshot: the fresh entries as one more, unsorted, run first."""
        fresh = b"".join(key.to_bytes(KEY_BYTES, "big") + value for key, value in self._fresh.items())
        return [fresh, *(run.dump() for run in self._runs)]

    @classmethod
    def load(cls, dumped: list[bytes]) -> ArchiveTable:
        """Rebuild what `dump` gave."""
        table = cls()
        table._fresh = dict(_unpack(dumped[0]))
        table._runs = [Run(_unpack(packed)) for packed in dumped[1:]]
        return table
