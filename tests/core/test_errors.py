"""The error tree: codes, kinds and sentences that cross processes and wires."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from agentlightning.core import errors
from agentlightning.core.errors import AgentLightningError, NotFound, error_class


def tree(cls: type[AgentLightningError] = AgentLightningError) -> Iterator[type[AgentLightningError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


CLASSES = list(tree())


def test_every_class_is_exported_and_drawn_in_the_docstring() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert names == {name for name in errors.__all__ if name not in ("error_class", "message_of", "printable")}
    drawing = errors.__doc__ or ""
    assert [name for name in sorted(names) if name not in drawing] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_a_code_leads_back_to_its_class(cls: type[AgentLightningError]) -> None:
    assert error_class(cls.code) is cls


def test_a_code_of_another_version_is_still_an_error_of_ours() -> None:
    assert error_class("invented_later") is AgentLightningError


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_cross_processes_with_their_fields(cls: type[AgentLightningError]) -> None:
    error = cls("a sentence")
    error.__dict__["added"] = 3
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.message, again.__dict__) == (cls, "a sentence", "a sentence", error.__dict__)


@pytest.mark.parametrize("cls", [errors.InvalidInput, errors.NotFound, errors.PayloadTooLarge, errors.UnsafeBind])
def test_where_a_value_error_was_promised_it_is_one(cls: type[AgentLightningError]) -> None:
    assert issubclass(cls, ValueError)


def test_only_what_may_succeed_unchanged_is_retryable() -> None:
    assert {"UnknownOutcome", "StoreUnreachable"} <= {cls.__name__ for cls in CLASSES if cls.retryable}
    for cls in (errors.InvalidInput, errors.NotFound, errors.Refused, errors.LogCorrupt, errors.Unauthorized):
        assert not cls.retryable


def test_unknown_ids_are_told_in_the_promised_sentences() -> None:
    assert str(NotFound.rollout("X")) == "Rollout X not found"
    assert str(NotFound.attempt("Y", "X")) == "Attempt Y not found for rollout X"
    assert str(NotFound.attempts("X")) == "No attempts found for rollout X"
    assert str(NotFound.resources("X", 2)) == "Resources X not found in version 2"


def test_errors_with_fields_say_them() -> None:
    locked = errors.LogLocked(pid=42, address="http://127.0.0.1:4747")
    assert "42" in str(locked) and "http://127.0.0.1:4747" in str(locked)
    assert "900" in str(errors.PayloadTooLarge(limit=900, size=1000)) and "1000" in str(
        errors.PayloadTooLarge(limit=900, size=1000)
    )
    assert "position 7" in str(errors.LogCorrupt(position=7))
    assert "pip install poml" in str(errors.OptionalDependencyError("The poml engine", install="poml"))
    assert errors.Expired().reason == "expired"
    assert "owner" in str(errors.Refused(reason="owner"))
