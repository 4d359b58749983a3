"""Every error this package raises on purpose, in one tree.

::

    AgentLightningError                    code, retryable
    ├── InvalidInput        (ValueError)   what the caller passed cannot be used
    │   ├── InvalidPayload                 a value that no event can carry (not JSON, wrong type)
    │   ├── PayloadTooLarge                a value above the limit            .limit (bytes) .size
    │   ├── LostPlaceholder                a prompt without a place for a value that is filled in
    │   ├── IncompleteTrace                a trace lacks what strict_traces asks for
    │   └── UnsafeBind                     serving beyond loopback without a token
    ├── NotFound            (ValueError)   an id that the store does not know
    ├── Refused                            the log refused a command          .reason
    │   ├── Expired                        the command is older than the table of verdicts
    │   └── Archived                       the rollout left the live state
    ├── LogError                           the event log itself
    │   ├── LogCorrupt                     bytes that do not decode or chain  .position .topic .partition
    │   ├── LogLocked                      another process writes this log    .pid .address
    │   ├── LogClosed                      used after close
    │   ├── StorageError                   the disk or broker failed
    │   │   ├── LogFull                    ... because there is no room
    │   │   ├── AccessRefused              ... because of who we are: credentials, certificates, rights
    │   │   └── Rebuilding                 the index of finished rollouts is being made (retryable)
    │   ├── HistoryChanged                 the log is not the one that was folded: the store has ended
    │   ├── UnknownOutcome                 written or not: nobody can tell yet (retryable)
    │   └── PositionUnknown                a position before or behind what is there
    │       ├── ForeignPosition            a position of another log or of another history
    │       └── OffsetLost                 a reader's next record is gone             .offset
    ├── Departed                           a replayed algorithm decided otherwise   .position .expected .got
    ├── RecordEnds                         a replay asked for what was not recorded .position
    ├── AttemptTimedOut     (TimeoutError) an attempt ran longer than its rollout allows
    ├── RolloutCancelled                   a rollout was cancelled while its agent ran
    ├── StoreUnreachable                   no answer from the store's address (retryable)
    ├── Unauthorized                       the token is missing or wrong
    ├── ForeignHost                        a request for another host name than the store's
    ├── CrossSite                          a browser's request for a page of another site
    └── OptionalDependencyError (ImportError)   an extra is not installed

``retryable`` says whether the same call, sent again unchanged with the same command id, can
succeed. ``code`` is what travels over the wire; :func:`error_class` is the way back.
Errors pickle with all their fields, so they cross process borders intact.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AccessRefused",
    "AgentLightningError",
    "Archived",
    "AttemptTimedOut",
    "CrossSite",
    "Departed",
    "Expired",
    "ForeignHost",
    "ForeignPosition",
    "HistoryChanged",
    "IncompleteTrace",
    "InvalidInput",
    "InvalidPayload",
    "LogClosed",
    "LogCorrupt",
    "LogError",
    "LogFull",
    "LogLocked",
    "LostPlaceholder",
    "NotFound",
    "OffsetLost",
    "OptionalDependencyError",
    "PayloadTooLarge",
    "PositionUnknown",
    "Rebuilding",
    "RecordEnds",
    "Refused",
    "RolloutCancelled",
    "StorageError",
    "StoreUnreachable",
    "Unauthorized",
    "UnknownOutcome",
    "UnsafeBind",
    "error_class",
    "message_of",
    "printable",
]


def message_of(error: BaseException) -> str:
    """``str(error)``; an exception that cannot say what it is must not replace itself by another one."""
    try:
        return str(error)
    except Exception as second:
        return f"<message that cannot be written: {type(second).__name__}>"


def printable(text: str) -> str:
    """`text` in one harmless line: control characters, escape sequences, bidi marks and lone surrogates are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class AgentLightningError(Exception):
    """Root of the tree: ``str(error)`` is one sentence for a person."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "") -> None:
        # Sentences hold what callers sent; they are logged and printed on terminals.
        super().__init__(printable(str(message).replace("\n", " ")))

    @property
    def message(self) -> str:
        """The sentence, as given to the constructor."""
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[AgentLightningError], args: tuple[Any, ...], fields: dict[str, Any]) -> AgentLightningError:
    # Past __init__, whose parameters differ from class to class.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class InvalidInput(AgentLightningError, ValueError):
    """The caller passed something that cannot be used; nothing was changed."""

    code = "invalid_input"


class InvalidPayload(InvalidInput):
    """A value cannot be written into an event (not JSON, or a type that would come back changed)."""

    code = "invalid_payload"


class PayloadTooLarge(InvalidInput):
    """A value is larger than the limit; both are bytes of the encoded form."""

    code = "payload_too_large"

    def __init__(self, message: str = "", *, limit: int | None = None, size: int | None = None) -> None:
        if not message and limit is not None:
            got = "" if size is None else f" of {size} bytes"
            message = f"The payload{got} is larger than the limit of {limit} bytes"
        super().__init__(message)
        self.limit = limit
        self.size = size


class LostPlaceholder(InvalidInput):
    """A prompt has no place for a value that the agent fills in: the placeholder was lost when it was rewritten."""

    code = "lost_placeholder"


class IncompleteTrace(InvalidInput):
    """A trace lacks what ``strict_traces`` asks for; the message says what."""

    code = "incomplete_trace"


class UnsafeBind(InvalidInput):
    """Serving on an address that other machines reach needs a token."""

    code = "unsafe_bind"


class NotFound(AgentLightningError, ValueError):
    """An id names nothing in the store; the sentences are part of the public contract."""

    code = "not_found"

    @classmethod
    def rollout(cls, rollout_id: str) -> NotFound:
        """``Rollout X not found``."""
        return cls(f"Rollout {rollout_id} not found")

    @classmethod
    def attempt(cls, attempt_id: str, rollout_id: str) -> NotFound:
        """``Attempt Y not found for rollout X``."""
        return cls(f"Attempt {attempt_id} not found for rollout {rollout_id}")

    @classmethod
    def attempts(cls, rollout_id: str) -> NotFound:
        """``No attempts found for rollout X``."""
        return cls(f"No attempts found for rollout {rollout_id}")

    @classmethod
    def resources(cls, resources_id: str, version: int | None = None) -> NotFound:
        """``Resources X not found``, with the version when one was asked for."""
        which = "" if version is None else f" in version {version}"
        return cls(f"Resources {resources_id} not found{which}")


class Refused(AgentLightningError):
    """The log holds the command and the fold refused it; ``reason`` is the verdict's word."""

    code = "refused"

    def __init__(self, message: str = "", *, reason: str | None = None) -> None:
        super().__init__(message or f"The command was refused: {reason or self.code}")
        self.reason = reason or self.code


class Expired(Refused):
    """The command's basis is older than the table of verdicts: it may have been applied before."""

    code = "expired"


class Archived(Refused):
    """The rollout left the live state and has to be carried back before it can change."""

    code = "archived"

    def __init__(self, message: str = "", *, rollout_id: str = "") -> None:
        super().__init__(message or f"Rollout {rollout_id} is archived")
        self.rollout_id = rollout_id


class LogError(AgentLightningError):
    """The event log cannot do what was asked."""

    code = "log_error"


class LogCorrupt(LogError):
    """The record at ``position`` cannot be decoded or does not continue the log before it.

    Where a log reports it, ``position`` is the offset in ``partition`` of ``topic``.
    """

    code = "log_corrupt"

    def __init__(
        self,
        message: str = "",
        *,
        position: int | None = None,
        topic: str | None = None,
        partition: int | None = None,
    ) -> None:
        where = "" if position is None else f" at position {position}"
        super().__init__(message or f"The log is corrupt{where}")
        self.position = position
        self.topic = topic
        self.partition = partition


class LogLocked(LogError):
    """Another process writes this log: ``pid`` owns it and serves ``address`` (None: none known)."""

    code = "log_locked"

    def __init__(self, message: str = "", *, pid: int | None = None, address: str | None = None) -> None:
        if not message:
            owner = "another process" if pid is None else f"process {pid}"
            serves = "" if address is None else f", which serves {address}"
            message = f"The log is in use by {owner}{serves}"
        super().__init__(message)
        self.pid = pid
        self.address = address


class LogClosed(LogError):
    """The log was closed before the call."""

    code = "log_closed"


class StorageError(LogError):
    """The disk or broker refused a write; it is known not to be in the log."""

    code = "storage_error"


class LogFull(StorageError):
    """There is no room left for the write; it is known not to be in the log."""

    code = "log_full"


class AccessRefused(StorageError):
    """The broker does not let this client in, or do this; the sentence names the setting, and waiting changes nothing."""

    code = "access_refused"


class Rebuilding(StorageError):
    """What the call needs is being made anew from the log. Repeat the call with the same command id."""

    code = "rebuilding"
    retryable = True


class HistoryChanged(LogError):
    """The log holds another history than this store has folded: the store has ended, and a restart folds the log anew.

    Whether the calls under way are in that log is not known; after the restart the same command ids find it out.
    """

    code = "history_changed"


class UnknownOutcome(LogError):
    """The write may or may not be in the log; repeat it with the same command id to learn which."""

    code = "unknown_outcome"
    retryable = True


class PositionUnknown(LogError):
    """A position that this log does not hold: already removed, or not written yet."""

    code = "position_unknown"


class ForeignPosition(PositionUnknown):
    """A position of another log, of another history of this log, or one that this log has not reached."""

    code = "foreign_position"


class OffsetLost(PositionUnknown):
    """The log no longer holds the record at ``offset`` that a reader wants next."""

    code = "offset_lost"

    def __init__(self, message: str = "", *, offset: int | None = None) -> None:
        where = "" if offset is None else f" {offset}"
        super().__init__(message or f"The log does not hold offset{where} (any more)")
        self.offset = offset


class Departed(AgentLightningError):
    """A replayed algorithm decided something else than the record says: `expected` and `got` in words.

    `position`: of the recorded decision; -1 where the record has no further one.
    """

    code = "departed"

    def __init__(self, message: str = "", *, position: int = -1, expected: str = "", got: str = "") -> None:
        where = f"at position {position}" if position >= 0 else "behind its last decision"
        super().__init__(message or f"the algorithm departs from the record {where}: expected {expected}; got {got}")
        self.position = position
        self.expected = expected
        self.got = got


class RecordEnds(AgentLightningError):
    """A replayed algorithm waits for what never happened in the record, which ends at `position`."""

    code = "record_ends"

    def __init__(self, message: str = "", *, position: int = -1) -> None:
        super().__init__(message or f"the record ends at position {position}")
        self.position = position


class AttemptTimedOut(AgentLightningError, TimeoutError):
    """An attempt ran longer than the ``timeout_seconds`` of its rollout."""

    code = "attempt_timed_out"


class RolloutCancelled(AgentLightningError):
    """The rollout was cancelled in the store while its agent ran."""

    code = "rollout_cancelled"


class StoreUnreachable(AgentLightningError):
    """Nothing usable answered at the store's address within the caller's patience."""

    code = "store_unreachable"
    retryable = True


class Unauthorized(AgentLightningError):
    """The store asks for a token, and the one that came is missing or wrong."""

    code = "unauthorized"


class ForeignHost(AgentLightningError):
    """The request names a host that is not the store's; a page on another site can make a browser send such requests."""

    code = "foreign_host"


class CrossSite(AgentLightningError):
    """A browser sent the request for a page of another site, which the store does not let in."""

    code = "cross_site"


class OptionalDependencyError(AgentLightningError, ImportError):
    """A feature needs a library that is not installed; the message names the pip command."""

    code = "optional_dependency"

    def __init__(self, feature: str, install: str = "") -> None:
        super().__init__(f"{feature} needs: pip install {install}" if install else feature)
        self.install = install


def error_class(code: str) -> type[AgentLightningError]:
    """The class whose wire code is ``code``; the root for a code this version does not know."""
    pending = [AgentLightningError]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return AgentLightningError
