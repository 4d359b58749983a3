"""The demo's agent: asks the model for the sentiment of one review and scores the answer."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from ...core.model.resources import LLM, PromptTemplate
from ...runners.agent.decorators import rollout

if TYPE_CHECKING:
    from openai import OpenAI

API_KEY_NAME = "AGL_DEMO_API_KEY_ENV"
"""Environment variable that holds the *name* of the variable with the key: no key ever enters the log."""


def score(answer: str, label: str) -> float:
    """1.0 where the first word of the answer is the label, 0.0 otherwise.

    Case and surrounding space are ignored and nothing else: "positive." is wrong, and so is "It is positive".
    """
    words = answer.strip().lower().split()
    return 1.0 if words and words[0] == label else 0.0


@rollout
def agent(task: dict[str, str], prompt_template: PromptTemplate, llm: LLM) -> float:
    """Asks by text completion, which is how a model this small follows examples. `task`: id, text and label."""
    answer = _client(llm.get_base_url()).completions.create(
        model=llm.model, prompt=prompt_template.format(review=task["text"]), stream=False, **_parameters(llm)
    )
    return score(answer.choices[0].text, task["label"])


@rollout
def chat_agent(task: dict[str, str], prompt_template: PromptTemplate, llm: LLM) -> float:
    """The same question as one chat message, for endpoints that offer nothing else."""
    answer = _client(llm.get_base_url()).chat.completions.create(
        model=llm.model,
        messages=[{"role": "user", "content": prompt_template.format(review=task["text"])}],
        stream=False,
        **_parameters(llm),
    )
    return score(answer.choices[0].message.content or "", task["label"])


def _parameters(llm: LLM) -> dict[str, Any]:
    return {"timeout": 60.0, **llm.sampling_parameters}


@cache
def _client(base_url: str) -> OpenAI:
    """One client per process and address: a new one costs as much as a short answer."""
    from openai import OpenAI

    key = os.environ.get(os.environ.get(API_KEY_NAME, ""), "") or "none"
    return OpenAI(base_url=base_url, api_key=key, max_retries=1)
