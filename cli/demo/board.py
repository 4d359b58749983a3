"""What the demo knows so far: each candidate's rewards, who is still in, and the held-out answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .candidates import Candidate
from .wilson import Estimate, estimate

Stage = Literal["validation", "test"]


@dataclass(frozen=True)
class Key:
    """One question: which candidate was asked about which review, for the search or for the held-out check."""

    stage: Stage
    candidate: str
    review_id: str


@dataclass
class Row:
    """One candidate on the board; `planned` counts the validation questions put so far, `dropped_in` the round."""

    candidate: Candidate
    planned: int = 0
    dropped_in: int | None = None
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    missing: int = 0

    @property
    def estimate(self) -> Estimate:
        return estimate(list(self.rewards.values()))


@dataclass
class Board:
    """Mutable record of one run that the search fills and the screen shows."""

    rows: list[Row]
    round: int = 0
    rounds: int = 0
    test_planned: int = 0
    test: dict[str, dict[str, float]] = field(default_factory=dict[str, "dict[str, float]"])
    answered: int = 0
    recalled: int = 0

    @property
    def answers(self) -> int:
        """How many validation questions have a reward."""
        return sum(len(row.rewards) for row in self.rows)

    def row(self, candidate: str) -> Row:
        """The row of a candidate by its name; StopIteration for a name that is not on the board."""
        return next(row for row in self.rows if row.candidate.name == candidate)

    def ranking(self) -> list[Row]:
        """Best mean first among those with the most answers; ties keep the order of the list."""
        return sorted(self.rows, key=lambda row: (row.dropped_in is not None, -(row.dropped_in or 0), -_mean(row)))

    def note(self, key: Key, reward: float | None, *, recalled: bool = False) -> None:
        """Takes one result; None says that the question got no reward, which is missing and not zero."""
        self.answered += 1
        self.recalled += recalled
        if key.stage == "test":
            if reward is not None:
                self.test.setdefault(key.candidate, {})[key.review_id] = reward
            return
        row = self.row(key.candidate)
        if reward is None:
            row.missing += 1
        else:
            row.rewards[key.review_id] = reward


def _mean(row: Row) -> float:
    return row.estimate.mean if row.rewards else -1.0
