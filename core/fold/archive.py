"""A compact table of archived rollouts: id and state hash, 16 bytes each, however many there are.

Finished rollouts leave the fold's hot state (state.py); what stays is enough to tell "archived" from "unknown" and to
check a rollout that is brought back. Entries are divided by the first bits of their keys into parts, and lie in sorted runs
of growing size (a log-structured merge): a look-up is a few binary searches in one part, and a merge, which happens in the
middle of a command, takes milliseconds however large the table is. Ids of the usual form (`ro-` and 12 hex digits) are
stored as their 6 bytes, others as a 6-byte BLAKE2b of the id. In memory the keys are numbers in an array of their own,
which the standard library bisects quickly: 16 bytes an entry.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain, groupby

KEY_BYTES = 6
HASH_BYTES = 8
ENTRY_BYTES = KEY_BYTES + HASH_BYTES
PARTS = 256
PART_BITS = 8 * KEY_BYTES - (PARTS - 1).bit_length()
"""Bits of a key below those that name its part."""
PART_MASK = (1 << PART_BITS) - 1
FRESH_LIMIT = 64
"""Entries of the first part that are kept in the dict before they become a sorted run.

The last part keeps nearly twice as many: keys are spread evenly, and with one limit all parts would merge at the same time.
"""

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
    """Entries of one part in order of their keys; never changed. `values` holds 8 bytes for each key.

    Keys are spread evenly, so the first bits below those of the part tell nearly where one lies: `starts` has the index of
    the first key of each of about `len / STRIDE` equal ranges, and a look-up bisects within one of them.
    """

    __slots__ = ("keys", "shift", "starts", "values")

    def __init__(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Of two entries of one key the later one counts."""
        newest = dict(entries)
        keys = self.keys = array("Q", sorted(newest))
        self.values = b"".join(map(newest.__getitem__, keys))
        bits = max(len(keys) // STRIDE, 1).bit_length()
        shift = self.shift = PART_BITS - bits
        first = keys[0] & ~PART_MASK if keys else 0
        self.starts = array("I", (bisect_left(keys, first + (number << shift)) for number in range((1 << bits) + 1)))

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, number: int) -> bytes | None:
        """The hash of a key."""
        keys = self.keys
        near = (number & PART_MASK) >> self.shift
        end = self.starts[near + 1]
        index = bisect_left(keys, number, self.starts[near], end)
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


def _part_of(entry: tuple[int, bytes]) -> int:
    return entry[0] >> PART_BITS


def _unpack(packed: bytes) -> Iterable[tuple[int, bytes]]:
    for at in range(0, len(packed), ENTRY_BYTES):
        yield int.from_bytes(packed[at : at + KEY_BYTES], "big"), packed[at + KEY_BYTES : at + ENTRY_BYTES]


class ArchiveTable:
    """Rollout id -> 8-byte state hash. Deterministic: the same calls leave the same bytes."""

    def __init__(self) -> None:
        self._fresh: dict[int, bytes] = {}
        self._waiting: list[list[int]] = [[] for _ in range(PARTS)]  # the keys of `_fresh`, of each part
        self._runs: list[list[Run]] = [[] for _ in range(PARTS)]  # of each part, oldest and largest first

    def put(self, rollout_id: str, state_hash: bytes) -> None:
        """Remember a rollout, or replace its hash."""
        key, fresh = key_of(rollout_id), self._fresh
        part = key >> PART_BITS
        waiting = self._waiting[part]
        if key not in fresh:
            waiting.append(key)
        fresh[key] = state_hash
        if len(waiting) >= FRESH_LIMIT + FRESH_LIMIT * part // PARTS:
            runs = self._runs[part]
            runs.append(Run((one, fresh.pop(one)) for one in waiting))
            self._waiting[part] = []
            while len(runs) > 1 and len(runs[-2]) <= 2 * len(runs[-1]):
                newer = runs.pop()
                runs[-1] = Run(chain(runs[-1].entries(), newer.entries()))

    def take(self, rollout_id: str) -> None:
        """Forget a rollout; it is hot again."""
        self.put(rollout_id, GONE)

    def get(self, rollout_id: str) -> bytes | None:
        """Return the hash, or None for a rollout that is not archived."""
        key = key_of(rollout_id)
        found = self._fresh.get(key)
        if found is None:
            for run in reversed(self._runs[key >> PART_BITS]):
                found = run.get(key)
                if found is not None:
                    break
        return None if found is None or found == GONE else found

    def copied(self) -> ArchiveTable:
        """A table of its own with the same entries; runs never change, so they are shared."""
        made = ArchiveTable()
        made._fresh = dict(self._fresh)
        made._waiting, made._runs = [list(one) for one in self._waiting], [list(one) for one in self._runs]
        return made

    def dump(self) -> list[bytes]:
        """The table for a snapshot: the fresh entries as one more, unsorted, run first; then those of each part in turn."""
        fresh = b"".join(key.to_bytes(KEY_BYTES, "big") + value for key, value in self._fresh.items())
        return [fresh, *(run.dump() for part in self._runs for run in part)]

    @classmethod
    def load(cls, dumped: list[bytes]) -> ArchiveTable:
        """Rebuild what `dump` gave, of this release or of one whose runs were not divided into parts."""
        table = cls()
        table._fresh = dict(_unpack(dumped[0]))
        for key in table._fresh:
            table._waiting[key >> PART_BITS].append(key)
        for packed in dumped[1:]:
            for part, entries in groupby(_unpack(packed), key=_part_of):
                table._runs[part].append(Run(entries))
        return table
