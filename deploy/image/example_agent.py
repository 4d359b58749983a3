"""An agent that needs no model, and the tasks to try it on: what the containers of deploy/ run until yours replaces it.

The runners execute `agent`. As a program this file hands in twenty tasks, waits for them, and prints who was right:

    python example_agent.py http://127.0.0.1:4747       # the store's token is read from AGL_TOKEN
"""

from __future__ import annotations

import asyncio
import os
import sys

import agentlightning as agl

TASKS = 20
PATIENCE_SECONDS = 120.0


@agl.rollout
async def agent(task: dict[str, int], prompt_template: agl.PromptTemplate) -> float:
    """Reward 1 for a sum below 30; the pause stands for a model that thinks."""
    question = prompt_template.format(**task)
    await asyncio.sleep(0.2)
    total = task["a"] + task["b"]
    agl.emit_message(f"{question} {total}.")
    return 1.0 if total < 30 else 0.0


async def hand_in(address: str, token: str | None) -> int:
    """Enqueue the tasks and wait until all are over; returns the exit code."""
    store = agl.LightningStoreClient(address, token=token)
    try:
        await store.add_resources({"question": agl.PromptTemplate(template="What is {a} + {b}?", engine="f-string")})
        rollouts = [await store.enqueue_rollout({"a": number, "b": 2 * number}) for number in range(TASKS)]
        ended = await store.wait_for_rollouts([one.rollout_id for one in rollouts], timeout=PATIENCE_SECONDS)
        for rollout in ended:
            reward = agl.find_final_reward(await store.query_spans(rollout.rollout_id, "latest"))
            print(f"{rollout.rollout_id} {rollout.status} {rollout.input} reward {reward}")
        print(f"{len(ended)} of {TASKS} are over")
        return 0 if len(ended) == TASKS else 1
    finally:
        await store.close()


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4747"
    sys.exit(asyncio.run(hand_in(where, os.environ.get("AGL_TOKEN"))))
