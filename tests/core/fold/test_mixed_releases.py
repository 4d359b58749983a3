"""Decision 33, two releases on one log: the older one lacks an event type that the newer one writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Union
from unittest.mock import patch

import msgspec
import pytest

from agentlightning.core.events import codec
from agentlightning.core.events import schema as events
from agentlightning.core.events.codec import encode
from agentlightning.core.events.schema import AnyEvent, Config, NewRollout, Proposal
from agentlightning.core.fold import commands, rules
from agentlightning.core.fold.apply import Outcome, apply, fold
from agentlightning.core.fold.state import State, dump, load

from .test_fold_promises import Desk

NEW = events.ResourcesPublished
"""The type that the older release does not know."""
PUBLISHED = NEW(resources_id="rs", resources=msgspec.Raw(b"null"))


@contextmanager
def the_older_release(lacks: type[msgspec.Struct] = NEW) -> Iterator[None]:
    """The codec as it was before `lacks` was added to the union of events."""
    known = tuple(kind for kind in AnyEvent.__args__ if kind is not lacks)  # type: ignore[attr-defined]
    fields = [
        (field.name, Union[known] if field.name == "event" else field.type, field.default)  # noqa: UP007
        if field.default is not msgspec.NODEFAULT
        else (field.name, Union[known] if field.name == "event" else field.type)  # noqa: UP007
        for field in msgspec.structs.fields(Proposal)
    ]
    older = msgspec.defstruct("Proposal", fields, frozen=True, omit_defaults=True)
    with (
        patch.object(codec, "TYPES", codec.TYPES - {str(lacks.__struct_config__.tag)}),
        patch.object(codec, "_decode", msgspec.json.Decoder(older).decode),
    ):
        yield


def noncritical(proposal: bytes) -> bytes:
    return encode(msgspec.structs.replace(codec.decode(proposal), noncritical=True))


class Mixed:
    """One log, folded by both releases record by record; both propose, in turns, from what they have folded."""

    def __init__(self) -> None:
        self.newer, self.older = Desk(), State()
        self._catch_up()

    def _catch_up(self) -> list[Outcome]:
        with the_older_release():
            return [apply(self.older, value) for value in self.newer.values[self.older.position :]]

    def say(self, event: AnyEvent, by: str = "newer", change: Callable[[bytes], bytes] = bytes) -> None:
        state = self.newer.state if by == "newer" else self.older
        value = self.newer.make(event, basis=(state.position - 1, state.fingerprint))
        mine = self.newer.put(change(value))
        (theirs,) = self._catch_up()
        assert (mine.verdict, mine.facts) == (theirs.verdict, theirs.facts)
        assert dump(self.newer.state) == dump(self.older), "same-log-same-state, whatever the release"


def _touched_by_a_skip() -> None:
    """State, verdicts and fingerprint of both releases around records that may be skipped."""
    mixed, chance = Mixed(), Random(33)
    for number in range(40):
        before = load(dump(mixed.newer.state))
        mixed.say(PUBLISHED, chance.choice(("newer", "older")), noncritical)
        after = load(dump(mixed.newer.state))
        assert (after.position, after.skipped) == (before.position + 1, before.skipped + 1)
        assert after.fingerprint == before.fingerprint and not after.resources
        assert len(after.verdicts) == len(before.verdicts)
        mixed.say(
            commands.enqueue([NewRollout(f"ro-{number}", msgspec.Raw(b"1"), config=Config(timeout_ms=1000))]),
            chance.choice(("newer", "older")),
        )
    assert len(mixed.older.rollouts) == 40 and mixed.older.refused == 0, "no basis was taken for foreign"


def test_33_what_is_not_critical_leaves_state_verdicts_and_fingerprint_alone_in_both_releases() -> None:
    _touched_by_a_skip()


def test_33_a_release_that_applied_what_others_skip_would_be_noticed() -> None:
    """The rule is left out: whoever knows the type applies it although it is marked as not critical."""

    def forgetful(value: bytes) -> Proposal:
        return msgspec.structs.replace(decode(value), noncritical=False)

    decode = codec.decode
    with patch("agentlightning.core.fold.apply.decode", forgetful), pytest.raises(AssertionError):
        _touched_by_a_skip()


def test_33_a_critical_event_halts_the_older_release_and_it_goes_on_once_upgraded() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim()
    proposal = codec.decode(desk.make(PUBLISHED))
    desk.put(encode(proposal))
    desk.end()
    with the_older_release():
        older = fold(desk.values)
        before = dump(older)
        assert apply(older, desk.values[-1]).verdict is None and dump(older) == before
    assert older.halted is not None and "resources.published" in older.halted and "upgrade" in older.halted
    assert older.position == 3 and older.rollouts["ro-a"].status == "preparing"
    assert dump(older) == dump(fold(desk.values[:3])), "it stopped before, and half of nothing was applied"
    upgraded = fold(desk.values[3:], load(before))
    assert dump(upgraded) == dump(desk.state) and upgraded.rollouts["ro-a"].status == "succeeded"


def test_33_an_activation_halts_the_older_release_before_the_first_new_event() -> None:
    desk = Desk()
    desk.enqueue()
    with patch.object(rules, "FOLD_VERSION", 2):
        assert desk.reason(events.FoldActivated(version=2)) == ""
        assert desk.reason(events.FoldActivated(version=2)) == "already_active"
        desk.say(PUBLISHED)
    with the_older_release():
        older = fold(desk.values)
    assert older.position == 2 and older.halted is not None and "fold version 2" in older.halted
    assert fold(desk.values).halted == older.halted, "knowing the type does not help who lacks the semantics"
    with patch.object(rules, "FOLD_VERSION", 2):
        assert dump(fold(desk.values)) == dump(desk.state)
