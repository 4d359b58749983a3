"""A prompt search: four prompts answer the same questions, the best one is published and checked on other questions.

    OPENAI_API_KEY=sk-... python examples/prompt_search.py

Any OpenAI-compatible endpoint will do: OPENAI_BASE_URL says which, OPENAI_MODEL the model's name there.
"""

import argparse
import os
import sys
from functools import cache

from openai import OpenAI

import agentlightning as agl

PROMPTS = [
    "{message}",
    "What kind of message is this? {message}",
    "Is this message a question, a complaint or praise?\n\n{message}",
    "Is this message a question, a complaint or praise? Answer with exactly one of these words, in lower case.\n\n{message}",
]
TRAIN = [
    {"message": "Where can I change my address?", "label": "question"},
    {"message": "The parcel came two weeks late and nobody told me.", "label": "complaint"},
    {"message": "Your colleague on the phone was wonderful, thank you!", "label": "praise"},
    {"message": "Do you deliver to Norway?", "label": "question"},
]
VAL = [
    {"message": "I was charged twice for the same order.", "label": "complaint"},
    {"message": "Best headphones I ever had.", "label": "praise"},
]
# Three attempts at most; an answer that never comes costs two minutes.
CONFIG = agl.RolloutConfig(timeout_seconds=120, max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


@cache
def client():
    """One client per process: a new one for every question costs as much as a short answer."""
    return OpenAI()


@agl.rollout
def sort_message(task, prompt_template: agl.PromptTemplate) -> float:
    """The agent: it asks the model once. What it returns is the reward."""
    answer = client().chat.completions.create(
        model=os.environ.get("OPENAI_MODEL", "gpt-4.1-nano"),
        messages=[{"role": "user", "content": prompt_template.format(message=task["message"])}],
    )
    return 1.0 if answer.choices[0].message.content == task["label"] else 0.0


async def mean_reward(store, resources, tasks, mode):
    """The mean over the tasks with these resources; a missing reward is left out, which is not 0."""
    wanted = [agl.EnqueueRolloutRequest(input=task, mode=mode, resources_id=resources.resources_id) for task in tasks]
    ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(wanted)]
    await store.wait_for_rollouts(ids)
    found = [agl.find_final_reward(await store.query_spans(one, attempt_id="latest")) for one in ids]
    rewards = [reward for reward in found if reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


@agl.algo
async def search(store, train_dataset, val_dataset):
    """The algorithm: every prompt on the training tasks, the best of them on the validation tasks."""
    best, best_mean = None, None
    for prompt in PROMPTS:
        resources = await store.add_resources({"prompt_template": prompt})
        mean = await mean_reward(store, resources, train_dataset, "train")
        print(f"[search] {'no reward' if mean is None else f'{mean:.2f}':>9}  {prompt!r}")
        if mean is not None and (best_mean is None or mean > best_mean):
            best, best_mean = resources, mean
    if best is not None:
        check = await mean_reward(store, best, val_dataset, "val")
        print(f"[search] the best one on the validation tasks: {check}")
    return best


def main() -> None:
    """Search, and say what was found and where the log is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="sqlite:///, http://, kafka:// or memory://; ./.agl/log.db if left out")
    parser.add_argument("--runners", type=int, default=4, help="processes that run the agent")
    arguments = parser.parse_args()
    if "OPENAI_API_KEY" not in os.environ:
        sys.exit("Set OPENAI_API_KEY; where OPENAI_BASE_URL is a server of your own, any text will do.")
    agl.setup_logging("WARNING")  # "INFO" says what every worker does
    trainer = agl.Trainer(
        name="prompt_search",
        algorithm=search,
        n_runners=arguments.runners,
        store=arguments.store,
        rollout_config=CONFIG,
    )
    result = trainer.fit(sort_message, TRAIN, val_dataset=VAL)
    print(f"Run {result.run_id} {result.outcome} after {len(result.statuses)} rollouts")
    for name, prompt in (result.best_resources or {}).items():
        if isinstance(prompt, agl.PromptTemplate):
            print(f"Best {name}: {prompt.template!r}")
    if not result.best_resources:
        print("No prompt was chosen; the log says why.")
    log, option = (arguments.store, f" --log {arguments.store}") if arguments.store else (".agl", "")
    if log.startswith(("http", "memory")):
        print(f"The log is what the store at {log} keeps")
    else:
        print(f"The log is in {log}: agl ps{option}; agl show {result.run_id}{option}")


if __name__ == "__main__":
    main()
