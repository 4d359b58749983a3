"""An agent with two prompts that are tuned together: what the second one needs depends on what the first one writes.

    OPENAI_API_KEY=sk-... python examples/several_prompts.py

Any OpenAI-compatible endpoint will do: OPENAI_BASE_URL says which, OPENAI_MODEL the model's name there.
"""

import argparse
import itertools
import os
import sys
from functools import cache

from openai import OpenAI

import agentlightning as agl

PROMPTS = {
    "notes": [
        "Summarise this report: {report}",
        "List every quantity in this report with its unit, one on each line: {report}",
    ],
    "answer": [
        "{question}\n\nNotes:\n{notes}",
        "{question} Answer with the number only.\n\nNotes:\n{notes}",
    ],
}
TASKS = [
    {"report": "The bakery used 40 kg of flour and sold 310 loaves.", "question": "How many loaves?", "answer": "310"},
    {"report": "Two vans drove 96 km and carried 18 parcels.", "question": "How many parcels?", "answer": "18"},
    {"report": "The pool was open for 9 hours; 75 people came.", "question": "How many people?", "answer": "75"},
]


@cache
def client():
    """One client per process."""
    return OpenAI()


def ask(prompt: str) -> str:
    """One answer of the model."""
    model = os.environ.get("OPENAI_MODEL", "gpt-4.1-nano")
    answer = client().chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    return answer.choices[0].message.content or ""


# strict_prompts: a prompt that lost a placeholder is an error of the attempt, not a bad answer.
@agl.rollout(strict_prompts=True)
def reader(task, notes: agl.PromptTemplate, answer: agl.PromptTemplate) -> float:
    """The agent: its parameters get the resources of their names."""
    taken = ask(notes.format(report=task["report"]))
    said = ask(answer.format(question=task["question"], notes=taken))
    agl.emit_message(f"notes {taken!r}, answer {said!r}")  # beside the two calls in the trace
    return 1.0 if said.strip() == task["answer"] else 0.0


async def mean_reward(store, prompts, tasks):
    """The mean with these prompts, and where they are in the store; None where no attempt gave a reward."""
    resources = await store.add_resources(prompts)
    wanted = [
        agl.EnqueueRolloutRequest(input=task, mode="train", resources_id=resources.resources_id) for task in tasks
    ]
    ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(wanted)]
    await store.wait_for_rollouts(ids)
    found = [agl.find_final_reward(await store.query_spans(one, attempt_id="latest")) for one in ids]
    rewards = [reward for reward in found if reward is not None]
    return sum(rewards) / len(rewards) if rewards else None, resources


@agl.algo
async def tune(store, train_dataset):
    """Every combination on every task: one prompt after the other would miss changes that only help together.

    Combinations multiply. Beyond some dozens try a random sample of them, or let the worse half go after a few tasks.
    """
    best, best_mean = None, None
    for texts in itertools.product(*PROMPTS.values()):
        prompts = dict(zip(PROMPTS, texts))
        mean, resources = await mean_reward(store, prompts, train_dataset)
        print(f"[tune] {'no reward' if mean is None else f'{mean:.2f}':>9}  {prompts}")
        if mean is not None and (best_mean is None or mean > best_mean):
            best, best_mean = resources, mean
    return best


def main() -> None:
    """Tune, and say what was found and where the log is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="sqlite:///, http://, kafka:// or memory://; ./.agl/log.db if left out")
    arguments = parser.parse_args()
    if "OPENAI_API_KEY" not in os.environ:
        sys.exit("Set OPENAI_API_KEY; where OPENAI_BASE_URL is a server of your own, any text will do.")
    agl.setup_logging("WARNING")  # "INFO" says what every worker does
    trainer = agl.Trainer(name="several_prompts", algorithm=tune, n_runners=3, store=arguments.store)
    result = trainer.fit(reader, TASKS)
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
