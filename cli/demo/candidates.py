"""The prompts that the demo compares: a fixed list, with and without worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .reviews import Review, of_split

_INSTRUCTION = "Decide whether the review is positive or negative. Answer with one word.\n\n"
_QUESTION = "Review: {review}\nSentiment:"
_OTHER = {"positive": "negative", "negative": "positive"}


@dataclass(frozen=True)
class Candidate:
    """One prompt; `template` holds `{review}` once, at its end, so that a server can keep what stands before it."""

    name: str
    template: str


def candidates() -> tuple[Candidate, ...]:
    """All candidates; the first one is the seed, whose held-out accuracy is the demo's "before".

    The examples come from the train split only. The list was written once, by hand, with an eye on the validation split
    and none on the test split; it contains what does not work too: the search has to find that out.
    """
    train = of_split("train")
    good = [review for review in train if review.label == "positive"]
    return (
        Candidate("plain instruction", _INSTRUCTION + _QUESTION),
        Candidate(
            "classify instruction", "Classify the sentiment of the review as positive or negative.\n\n" + _QUESTION
        ),
        Candidate(
            "critic instruction",
            "You are an expert critic. Read the review and say if the writer liked it. Answer positive or negative.\n\n"
            + _QUESTION,
        ),
        Candidate("3 good examples", _INSTRUCTION + _examples(good[:3]) + _QUESTION),
        Candidate("4 wrong examples", _INSTRUCTION + _examples(train[4:8], wrong=True) + _QUESTION),
        Candidate("instruction, 6 examples", _INSTRUCTION + _examples(train[:6]) + _QUESTION),
        Candidate("2 examples", _examples(train[:2]) + _QUESTION),
        Candidate("4 examples", _examples(train[4:8]) + _QUESTION),
        Candidate("8 other examples", _examples(train[8:16]) + _QUESTION),
    )


def _examples(reviews: Sequence[Review], *, wrong: bool = False) -> str:
    labels = [_OTHER[review.label] if wrong else review.label for review in reviews]
    return "".join(f"Review: {r.text}\nSentiment: {label}\n\n" for r, label in zip(reviews, labels, strict=True))
