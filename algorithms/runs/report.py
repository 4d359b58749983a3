"""What a run reached, for people: what each candidate is worth, what became of each rollout, and why some failed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, cast

from ...core.errors import AgentLightningError
from ...core.events import payload
from ...core.fold.state import ResourcesVersion, Rollout
from ...core.log.interface import Log
from ...core.model.resources import mask_models
from ...core.model.semconv import AGL_EXCEPTION
from ...core.model.span import Span
from ...core.model.status import FINISHED
from ...core.spans.rewards import attempt_spans, find_final_reward
from ...projections.history.rollout_history import fold_to_end
from ...projections.history.run_index import Run, RunBook
from ...projections.spans.blobs import NO_LIMIT_MB, Blobs
from ...projections.spans.span_log import SpanLog, key_range
from ..adapters.messages import TraceToMessages

NORMAL_QUANTILE = 1.96
"""Of the normal distribution: 95 % of it lie within so many standard deviations of the mean."""
_FRAME = re.compile(
    r'^[ \t]*File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<name>\S+)(?:\n[ \t]+(?P<code>\S.*))?', re.MULTILINE
)
_LIBRARY = re.compile(r"(^|/)(site-packages|dist-packages|lib/python3[^/]*|lib-dynload)/|^<")
_ROOT = re.escape(Path(__file__).resolve().parents[2].as_posix())
_PACKAGE = re.compile(rf"(^{_ROOT}|(^|/)agentlightning)/(algorithms|cli|compat|core|projections|rest|runners)/")


@dataclass(frozen=True)
class RolloutRow:
    """One rollout of a run. `answer` is the text of the last model call, `error` what its last attempt failed with.

    `line` is the line of the agent's code that the traceback leads to, `file.py:12 in name`; empty without one.
    """

    rollout_id: str
    status: str
    mode: str | None
    resources_id: str | None
    resources_version: int | None
    input: Any
    reward: float | None
    answer: str
    error: str
    line: str

    @property
    def finished(self) -> bool:
        """Whether the rollout has an outcome."""
        return self.status in FINISHED


@dataclass(frozen=True)
class Candidate:
    """A version of resources that rollouts of the run were executed with.

    `mean` is over the finished rollouts that have a reward, of which there are `rewarded`; `half_width` is half of the
    95 % interval of that mean by the normal approximation, None with fewer than two rewards. `missing` finished
    rollouts have no reward, `failed` ended otherwise than succeeded.
    """

    resources_id: str
    version: int | None
    rollouts: int
    rewarded: int
    missing: int
    failed: int
    mean: float | None
    half_width: float | None
    best: bool
    content: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


@dataclass(frozen=True)
class Failure:
    """Rollouts that failed in the same way: the same error, at the same line of the agent's code."""

    error: str
    line: str
    rollout_ids: list[str]
    inputs: list[Any]


@dataclass
class RunReport:
    """A run with everything that a person asks of it. `rows` are in order of creation, `candidates` in that of use."""

    run: Run
    rows: list[RolloutRow]
    candidates: list[Candidate]
    failures: list[Failure]

    @property
    def best(self) -> Candidate | None:
        """What the run names the best, else the candidate with the highest mean so far; None without rewards."""
        named = next((one for one in self.candidates if one.best), None)
        if named is not None:
            return named
        rewarded = [one for one in self.candidates if one.mean is not None]
        return max(rewarded, key=lambda one: one.mean or 0.0, default=None)


class LogReader:
    """Reads runs, rollouts and resources of one log; each method blocks for the I/O and writes nothing."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._blobs = Blobs(log, NO_LIMIT_MB)
        self._spans = SpanLog(log, self._blobs)

    def runs(self) -> RunBook:
        """The runs of the log, read to its end."""
        book = RunBook(self.log, self._blobs.fetch)
        book.advance()
        return book

    def report(self, book: RunBook, run: Run) -> RunReport:
        """Fold the log to its end and read the spans of the run's finished rollouts."""
        wanted = [*run.rollout_ids, *(one for one, run_id in book.early.items() if run_id == run.run_id)]
        rollouts, state = fold_to_end(self.log, wanted)
        rows = [self._row(rollout) for rollout in rollouts.values()]
        used = [(row.resources_id, row.resources_version) for row in rows if row.resources_id]
        best = (run.best_resources_id, run.best_resources_version)
        if run.best_resources_id:
            used.append((run.best_resources_id, run.best_resources_version))
        candidates = [
            _candidate(name, version, rows, (name, version) == best, self._content(state.resources.get(name, ()), version))
            for name, version in dict.fromkeys(used)
        ]
        return RunReport(run, rows, candidates, failures_of(rows))

    def resources(self) -> dict[str, list[tuple[ResourcesVersion, Mapping[str, Any]]]]:
        """Every version of every resources id, the oldest first, with its decoded content."""
        _, state = fold_to_end(self.log, ())
        return {
            name: [(one, self._decoded(one.resources) or {}) for one in versions]
            for name, versions in state.resources.items()
        }

    def _content(self, versions: Sequence[ResourcesVersion], version: int | None) -> Mapping[str, Any]:
        wanted = len(versions) if version is None else version
        content = self._decoded(versions[wanted - 1].resources) if 0 < wanted <= len(versions) else None
        return cast("dict[str, Any]", content) if isinstance(content, dict) else {}

    def _decoded(self, data: bytes | None) -> Any:
        """User data; where it cannot be read, a sentence that says why, since one bad value must not hide the others."""
        if not data:
            return None
        try:
            return mask_models(payload.decode(data, self._blobs.fetch))
        except AgentLightningError as error:
            return f"<{error.message}>"

    def _row(self, rollout: Rollout) -> RolloutRow:
        latest = rollout.attempts[-1] if rollout.attempts else None
        spans: list[Span] = []
        if latest is not None and rollout.status in FINISHED:
            stored = self._spans.read(rollout.rollout_id, within=key_range(rollout))
            spans = attempt_spans(stored, latest.attempt_id)
        error, line = ("", "")
        if latest is not None and rollout.status != "succeeded":
            error, line = error_of(spans, self._decoded(latest.metadata), str(latest.status))
        return RolloutRow(
            rollout_id=rollout.rollout_id,
            status=str(rollout.status),
            mode=rollout.mode,
            resources_id=rollout.resources_id,
            resources_version=rollout.resources_version,
            input=self._decoded(rollout.input),
            reward=find_final_reward(spans),
            answer=answer_of(spans),
            error=error if rollout.status in FINISHED else "",
            line=line if rollout.status in FINISHED else "",
        )


def error_of(spans: Iterable[Span], metadata: Any, status: str) -> tuple[str, str]:
    """(error, line of the agent's code) of an attempt that did not succeed."""
    raised = next((one for one in spans if one.name == AGL_EXCEPTION), None)
    known = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    line = "" if raised is None else line_of(str(raised.attributes.get("exception.stacktrace") or ""))
    error = str(known.get("error") or "")
    if not error and raised is not None:
        error = f"{raised.attributes.get('exception.type')}: {raised.attributes.get('exception.message')}"
    return error or status, line


def line_of(stack: str) -> str:
    """The last line of a traceback that is neither this package's nor a library's, as `file.py:12 in name: code`."""
    frames = [one for one in _FRAME.finditer(stack) if not _foreign(one["file"])]
    if not frames:
        return ""
    last = frames[-1]
    code = f": {last['code'].strip()}" if last["code"] and not last["code"].lstrip().startswith("File ") else ""
    return f"{PurePath(last['file'].replace(chr(92), '/')).name}:{last['line']} in {last['name']}{code}"


def _foreign(file: str) -> bool:
    path = file.replace("\\", "/")
    return bool(_LIBRARY.search(path) or _PACKAGE.search(path))


def answer_of(spans: Sequence[Span]) -> str:
    """The text of the last answer of a model in the trace; empty without one, JSON where the answer is no text."""
    for conversation in reversed(TraceToMessages().adapt(list(spans))):
        for message in reversed(conversation["messages"]):
            content = message.get("content")
            if message.get("role") == "assistant" and content:
                return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return ""


def _candidate(
    name: str, version: int | None, rows: Sequence[RolloutRow], best: bool, content: Mapping[str, Any]
) -> Candidate:
    mine = [row for row in rows if (row.resources_id, row.resources_version) == (name, version)]
    over = [row for row in mine if row.finished]
    rewards = [row.reward for row in over if row.reward is not None]
    mean, half_width = mean_of(rewards)
    return Candidate(
        resources_id=name,
        version=version,
        rollouts=len(mine),
        rewarded=len(rewards),
        missing=len(over) - len(rewards),
        failed=sum(row.status != "succeeded" for row in over),
        mean=mean,
        half_width=half_width,
        best=best,
        content=content,
    )


def mean_of(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half of its 95 % interval by the normal approximation; None where there are too few values."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1)
    return mean, NORMAL_QUANTILE * math.sqrt(variance / len(values))


def failures_of(rows: Iterable[RolloutRow]) -> list[Failure]:
    """Rollouts that did not succeed, grouped by error and line, the largest group first."""
    groups: dict[tuple[str, str], Failure] = {}
    for row in rows:
        if row.finished and row.status != "succeeded":
            group = groups.setdefault((row.error, row.line), Failure(row.error, row.line, [], []))
            group.rollout_ids.append(row.rollout_id)
            group.inputs.append(row.input)
    return sorted(groups.values(), key=lambda one: -len(one.rollout_ids))


__all__ = ["Candidate", "Failure", "LogReader", "RolloutRow", "RunReport", "answer_of", "error_of", "line_of", "mean_of"]
