"""The copy of the index of finished rollouts that lies in the topic `snapshots`, for a node on a machine without an index.

Rollouts lie in groups of `GROUP` numbers, each under the keys `archive/<group>/<part>`, a part being a compressed list of
packed rollouts. With each snapshot a node writes the groups in which something changed. Nothing depends on the copy: who
reads it checks each rollout against the fold's hash and their number against the fold's, and makes what is missing from
the log (backfill.py).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from ...core.errors import LogError
from ...core.log.interface import Ack, Log, NewRecord
from ...core.log.topics import SNAPSHOTS, partition_of
from .index import ArchiveIndex, group_of

logger = logging.getLogger(__name__)

PREFIX = "archive/"
PART_BYTES = 900_000
"""Rollouts of a part together, before they are compressed; a Kafka record may have about 1 MB."""
MOST_BYTES = 64_000_000
"""More than any part has when it is unpacked."""
READ_RECORDS = 16

_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class IndexCopy:
    """Writes the copy of one index; used by one thread at a time."""

    def __init__(self, log: Log, index: ArchiveIndex) -> None:
        self._log = log
        self._index = index
        self._written: set[int] | None = None  # the groups that the log has; None: it was not asked yet

    def write(self, created: int) -> None:
        """Append the groups that changed and those that the log lacks, without waiting; there are `created` rollouts."""
        changed = self._index.take_changed()
        self._index.flush()
        if self._written is None:
            self._written = {int(key.split("/")[1]) for key, _ in _parts(self._log)}
        made = range(group_of(created) + 1) if created else range(0)
        for group in sorted(changed.union(made) - (self._written - changed)):
            bodies = self._index.bodies_of(group)
            if bodies:
                self._written.add(group)
                self._put(group, bodies)

    def _put(self, group: int, bodies: Sequence[bytes]) -> None:
        parts: list[list[bytes]] = [[]]
        size = 0
        for body in bodies:
            if size + len(body) > PART_BYTES and parts[-1]:
                parts.append([])
                size = 0
            parts[-1].append(body)
            size += len(body)
        written = self._written

        def done(result: Ack | LogError) -> None:
            if isinstance(result, LogError):
                logger.warning("The copy of the index of finished rollouts was not written: %s", result)
                if written is not None:
                    written.discard(group)  # with the next snapshot, then

        for number, part in enumerate(parts):
            key = f"{PREFIX}{group}/{number}"
            packed = zlib.compress(msgspec.msgpack.encode(part), 1)
            if len(packed) <= PART_BYTES:  # a single rollout may be larger: that one is made from the log
                partition = partition_of(key, self._log.partitions(SNAPSHOTS))
                self._log.append(SNAPSHOTS, partition, [NewRecord(key, packed, 0)], done)


def _parts(log: Log) -> Iterator[tuple[str, bytes]]:
    """Key and value of every part that the log has."""
    for partition in range(log.partitions(SNAPSHOTS)):
        offset = 0
        while records := log.read(SNAPSHOTS, partition, offset, READ_RECORDS, headers=False):
            yield from ((one.key, one.value) for one in records if one.key.startswith(PREFIX) and one.value)
            offset = records[-1].offset + 1


def read_copy(log: Log) -> Iterator[list[bytes]]:
    """The packed rollouts of each part; some may be of another moment or missing. Raises `LogError`."""
    for key, packed in _parts(log):
        try:
            yield _decode(zlib.decompressobj().decompress(packed, MOST_BYTES))
        except (zlib.error, msgspec.MsgspecError) as error:
            logger.warning("A part of the copy of the index (%s) cannot be read (%s); it is ignored", key, error)
