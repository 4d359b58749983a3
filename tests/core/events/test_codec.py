"""Every event survives JSON, and unknown ones are told apart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.core.events import codec
from agentlightning.core.events import schema as events
from agentlightning.core.events.codec import Undecodable, UnknownEvent, decode, encode
from agentlightning.core.events.payload import deeper_than
from agentlightning.core.events.schema import Claim, Config, NewRollout, Proposal
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State, dump

TAGS = """attempt.claimed attempt.expired attempt.observed attempt.started attempt.updated claim.returned
fold.activated log.opened resources.published rollout.requeued rollout.restored rollout.started rollout.updated
rollouts.enqueued time.passed""".split()


def proposal(event: events.AnyEvent, **changes: object) -> Proposal:
    made = Proposal(id="a" * 32, time_us=1, writer="w", basis=-1, basis_print=b"", event=event)
    return msgspec.structs.replace(made, **changes)


st.register_type_strategy(msgspec.Raw, st.sampled_from([b"1", b"null", b'{"a":[1,"x"]}']).map(msgspec.Raw))


@pytest.fixture(autouse=True, scope="module")
def numbers_that_every_field_takes() -> Iterator[None]:
    st.register_type_strategy(int, st.integers(0, 2**31))
    yield
    st.register_type_strategy(int, st.integers())


TIME = events.TimePassed(from_ms=0, to_ms=1000)


def finite(event: events.Event) -> bool:
    """Rewards in the log are finite (core/spans/rewards.py); JSON has no other numbers."""
    return math.isfinite(getattr(event, "reward", None) or 0.0)


def raw(**changes: object) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(proposal(TIME)), **changes})


def samples() -> st.SearchStrategy[Proposal]:
    return st.builds(
        Proposal,
        id=st.text(max_size=40),
        time_us=st.integers(-(2**62), 2**62),
        writer=st.text(max_size=12),
        basis=st.integers(-1, 2**62),
        basis_print=st.binary(max_size=8),
        event=st.one_of(*(st.from_type(kind) for kind in events.AnyEvent.__args__)).filter(finite),  # type: ignore[attr-defined]
    )


def test_the_tags_are_pinned() -> None:
    assert sorted(codec.TYPES) == TAGS


@settings(deadline=None, max_examples=60)
@given(st.deferred(samples))
def test_every_event_survives(sample: Proposal) -> None:
    assert decode(encode(sample)) == sample


@pytest.mark.parametrize("kind", events.AnyEvent.__args__, ids=lambda kind: kind.__struct_config__.tag)  # type: ignore[attr-defined]
def test_every_type_is_built_and_survives(kind: type[events.Event]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.from_type(kind).filter(finite))
    def check(event: events.Event) -> None:
        assert decode(encode(proposal(event))).event == event  # type: ignore[arg-type]

    check()


def test_an_unknown_critical_type_halts_and_an_uncritical_one_is_skipped() -> None:
    unknown = {"t": "moon.landed", "where": 3}
    with pytest.raises(UnknownEvent) as critical:
        decode(raw(event=unknown))
    assert critical.value.critical and critical.value.type == "moon.landed"
    with pytest.raises(UnknownEvent) as skipped:
        decode(raw(event=unknown, noncritical=True))
    assert not skipped.value.critical


def test_an_uncritical_record_is_skipped_by_those_who_know_its_type_whatever_its_body() -> None:
    for body in ({"t": "time.passed", "from_ms": "x"}, {"t": "time.passed", "from_ms": 0, "to_ms": 9}, {"t": "new"}):
        state = State()
        apply(state, raw(event=body, noncritical=True))
        assert (state.skipped, state.refused, state.fingerprint, state.position) == (1, 0, b"", 1)


def test_a_record_of_a_newer_schema_is_never_taken_for_this_one() -> None:
    with pytest.raises(UnknownEvent):
        decode(raw(v=codec.SCHEMA_VERSION + 1))


def test_a_schema_that_never_was_is_malformed() -> None:
    with pytest.raises(Undecodable):
        decode(raw(v=0))


def test_an_older_decoder_halts_before_a_type_that_it_lacks() -> None:
    older = msgspec.json.Decoder(msgspec.defstruct("Old", [("event", events.LogOpened)]))
    with pytest.raises(msgspec.ValidationError):
        older.decode(raw())
    state = State()
    apply(state, raw(event={"t": "not.yet"}))
    assert state.halted is not None and state.position == 0
    before = dump(state)
    apply(state, raw())
    assert dump(state) == before


def _deep(depth: int, value: bytes) -> object:
    if depth:
        return _deep(depth - 1, value)
    try:
        return decode(value)
    except (Undecodable, UnknownEvent) as error:
        return type(error)


@pytest.mark.parametrize("levels", [5, 250, 290, 900])
def test_hostile_nesting_is_judged_alike_on_a_shallow_and_on_a_deep_stack(levels: int) -> None:
    text = encode(proposal(TIME))[:-1] + b',"z":' + b"[" * levels + b"]" * levels + b"}"
    assert _deep(0, text) == _deep(850, text)
    assert deeper_than(text, codec.MAX_NESTING) == (levels > codec.MAX_NESTING - 1)


LEAVES = st.none() | st.text(max_size=4) | st.sampled_from(["[{", "\\\"]"]) | st.integers()


@given(st.recursive(LEAVES, st.lists, max_leaves=60))
def test_the_depth_of_a_value_is_found_without_recursion(tree: object) -> None:
    def depth(item: object) -> int:
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    value = msgspec.json.encode([tree] * 40)
    for limit in range(8):
        assert deeper_than(value, limit) == (depth([tree]) > limit)


def test_headers_repeat_what_tools_filter_by() -> None:
    claimed = events.AttemptClaimed(rollout_id="ro-1", generation=0, sequence_id=1, claim=Claim("at-1"))
    record = codec.record_of(proposal(claimed), traceparent="00-aa-bb-01")
    expected = {"t": "attempt.claimed", "v": "1", "id": "a" * 32, "r": "ro-1", "tp": "00-aa-bb-01"}
    assert dict(record.headers) == expected and record.key == ""
    many = events.RolloutsEnqueued(rollouts=(NewRollout("ro-9", msgspec.Raw(b"null"), config=Config()),))
    assert codec.rollout_of(many) == "ro-9"
    assert codec.rollout_of(events.RolloutsEnqueued(rollouts=())) is None
