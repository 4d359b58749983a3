"""Snapshots of the folded state: written in chunks with the manifest last, read back only if every byte fits.

A chunk's key is position, writer and number, so two writers never overwrite each other's chunks. The manifest
names the chunks with their hashes, the fingerprint, the log offset to go on from, and the hash of the last record that was
folded: a log that has another record there, or none, is another history. In doubt the snapshot before is taken, then the
whole log.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import msgspec

from ...core.errors import LogError
from ...core.events.codec import rollout_of
from ...core.events.schema import RolloutsEnqueued
from ...core.fold.apply import Outcome
from ...core.fold.state import FOLD_VERSION, dump, load, pack_rollout
from ...core.log.interface import Ack, Log, NewRecord
from ...core.log.topics import CONTROL, SNAPSHOTS, partition_of
from .fold_cursor import FoldCursor
from .node import Node

logger = logging.getLogger(__name__)

CHUNK_BYTES = 900_000
KEPT = 2
"""How many manifests a log keeps: the newest and the one before."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot consists of. `offset`: the control offset of the first record that is not in it."""

    log_id: str
    fold_version: int
    position: int
    offset: int
    fingerprint: bytes
    chunks: list[str]
    hashes: list[bytes]
    last: bytes = b""
    """Hash of the control record before `offset`; empty in manifests of older releases, which are not used."""


def write_snapshot(log: Log, writer: str, image: bytes, state_at: tuple[int, int, bytes]) -> None:
    """Append the chunks of `image`, then the manifest in place of the older one, without waiting for the log.

    `state_at` is (position, next control offset, fingerprint) of the image. There are two slots for manifests, so the
    snapshot before survives a crash; what the replaced one consisted of is emptied. A failure is logged: a snapshot
    saves time, nothing depends on it.
    """
    position, offset, fingerprint = state_at
    partitions = log.partitions(SNAPSHOTS)
    last = _hash_before(log, offset)
    if not last:
        logger.warning("The snapshot at position %d was not written: the log does not have its last record", position)
        return
    packed = zlib.compress(image, 1)
    pieces = [packed[at : at + CHUNK_BYTES] for at in range(0, len(packed), CHUNK_BYTES)]
    keys = [f"{position}/{writer}/{number}" for number in range(len(pieces))]

    def done(result: Ack | LogError) -> None:
        if isinstance(result, LogError):
            logger.warning("The snapshot at position %d was not written: %s", position, result)

    def put(key: str, value: bytes) -> None:
        log.append(SNAPSHOTS, partition_of(key, partitions), [NewRecord(key, value, 0)], done)

    for key, piece in zip(keys, pieces):
        put(key, piece)
    manifest = Manifest(
        log_id=log.log_id,
        fold_version=FOLD_VERSION,
        position=position,
        offset=offset,
        fingerprint=fingerprint,
        chunks=keys,
        hashes=[blake2b(piece, digest_size=16).digest() for piece in pieces],
        last=last,
    )
    slots = _manifests(log)
    slot = min(range(KEPT), key=lambda one: slots[one].position if one in slots else -1)
    key = f"manifest/{slot}"
    put(key, msgspec.json.encode(manifest))
    dropped = [] if slot not in slots else [one for one in slots[slot].chunks if one not in keys]
    for one in dropped:
        put(one, b"")


def read_snapshot(log: Log) -> FoldCursor | None:
    """A cursor at the newest snapshot that is whole and of this log, or None."""
    for manifest in sorted(_manifests(log).values(), key=lambda one: -one.position):
        restored = _restore(log, manifest)
        if restored is not None:
            return restored
    return None


def _manifests(log: Log) -> dict[int, Manifest]:
    """Slot -> newest manifest in it, of those that can be read."""
    found: dict[int, Manifest] = {}
    for slot in range(KEPT):
        try:
            for record in log.read_key(SNAPSHOTS, f"manifest/{slot}")[-1:]:
                found[slot] = msgspec.json.decode(record.value, type=Manifest)
        except (msgspec.MsgspecError, LogError) as error:
            logger.warning("A snapshot manifest cannot be read (%s); it is ignored", error)
    return found


def _restore(log: Log, manifest: Manifest) -> FoldCursor | None:
    if manifest.log_id != log.log_id or manifest.fold_version != FOLD_VERSION:
        return None
    try:
        last = _hash_before(log, manifest.offset)
    except LogError as error:
        logger.warning("The snapshot at position %d cannot be checked (%s); it is ignored", manifest.position, error)
        return None
    if not last or last != manifest.last:
        logger.warning("The snapshot at position %d is not of this log's history; it is ignored", manifest.position)
        return None
    pieces: list[bytes] = []
    for key, expected in zip(manifest.chunks, manifest.hashes):
        try:
            records = log.read_key(SNAPSHOTS, key)
        except LogError as error:
            logger.warning("The snapshot at position %d cannot be read (%s); it is ignored", manifest.position, error)
            return None
        if not records or blake2b(records[-1].value, digest_size=16).digest() != expected:
            logger.warning("The snapshot at position %d is not whole; it is ignored", manifest.position)
            return None
        pieces.append(records[-1].value)
    try:
        state = load(zlib.decompress(b"".join(pieces)))
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        logger.warning("The snapshot at position %d cannot be read (%s); it is ignored", manifest.position, error)
        return None
    if state.position != manifest.position or state.fingerprint != manifest.fingerprint:
        return None
    return FoldCursor(log, state, manifest.offset)


def _hash_before(log: Log, offset: int) -> bytes:
    """The hash of the control record before `offset`; empty where the log has none there."""
    if not 0 < offset <= log.ends(CONTROL, 0)[1]:
        return b""
    for record in log.read(CONTROL, 0, offset - 1, 1, headers=False):
        if record.offset == offset - 1:
            return blake2b(record.key.encode() + b"/" + record.value, digest_size=16).digest()
    return b""


SLICE_ROLLOUTS = 128
"""So many rollouts are packed under the node's lock at a time: some tenths of a millisecond."""


class StateImage:
    """Makes one image.

    Each record names the rollout that it changes. What was packed before such a record is packed again, the last few at
    the moment that the image is of, when the other tables are copied too. They are encoded after the lock was released.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._packed: dict[str, bytes] = {}
        self._changed: set[str] = set()

    def make(self) -> tuple[bytes, tuple[int, int, bytes]]:
        """The image, and (position, next control offset, fingerprint) of its moment. Not under the node's lock."""
        node = self._node
        with node.lock:
            node.listeners.append(self._folded)
            left = list(node.state.rollouts)
        try:
            while True:
                for start in range(0, len(left), SLICE_ROLLOUTS):
                    with node.lock:
                        self._pack(left[start : start + SLICE_ROLLOUTS])
                    time.sleep(0)  # what waits for the lock goes first
                with node.lock:
                    before, left = len(left), list(self._changed)
                    if len(left) <= SLICE_ROLLOUTS or len(left) >= before:  # or more changes than this can keep up with
                        self._pack(left)
                        order, pieces = list(node.state.rollouts), node.state.verdicts.pieces()
                        tables, offset = node.state.without_rollouts(), node.next_offset
                        break
        finally:
            with node.lock:
                node.listeners.remove(self._folded)
        packed = [self._packed[rollout_id] for rollout_id in order]
        verdicts = b"".join(self._one_by_one(pieces))
        return dump(tables, packed, verdicts), (tables.position, offset, tables.fingerprint)

    def _one_by_one(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            time.sleep(0)  # who waits for the interpreter goes first

    def _folded(self, outcome: Outcome) -> None:
        """A record was folded: what it names counts as changed, whatever became of it. Under the lock."""
        if outcome.proposal is None:
            return
        event = outcome.proposal.event
        if isinstance(event, RolloutsEnqueued):
            self._changed.update(new.rollout_id for new in event.rollouts)
        elif (rollout_id := rollout_of(event)) is not None:
            self._changed.add(rollout_id)

    def _pack(self, rollout_ids: Iterable[str]) -> None:
        """Those that are hot still, as they are now. Under the lock."""
        rollouts = self._node.state.rollouts
        for rollout_id in rollout_ids:
            self._changed.discard(rollout_id)
            rollout = rollouts.get(rollout_id)
            if rollout is not None:
                self._packed[rollout_id] = pack_rollout(rollout)
