"""The demo's questions: 200 short reviews written for it, in three splits that never change."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, cast

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Review:
    """One review; `label` is "positive" or "negative", `review_id` is the same in every release."""

    review_id: str
    split: Split
    label: str
    text: str


@cache
def load_reviews() -> tuple[Review, ...]:
    """All reviews in file order: 40 train, 80 validation, 80 test.

    In each split the first 2 n reviews hold n of each label, so any even prefix is balanced. The reviews were written
    in pairs (one good, one bad experience with the same thing); a pair never spans two splits.
    """
    text = files(__name__.rpartition(".")[0]).joinpath("reviews.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(Review(row["id"], cast(Split, row["split"]), row["label"], row["text"]) for row in rows)


def of_split(split: Split) -> tuple[Review, ...]:
    """The reviews of one split, in file order."""
    return tuple(review for review in load_reviews() if review.split == split)


def tasks_of(split: Split) -> list[dict[str, str]]:
    """The reviews of one split as the agent takes them."""
    return [{"id": one.review_id, "text": one.text, "label": one.label} for one in of_split(split)]
