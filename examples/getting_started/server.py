"""The server of the tutorial "Getting Started": tries three prompts and prints the one with the best reward."""

import asyncio

from agentlightning import setup_logging
from agentlightning.server import AgentLightningServer
from agentlightning.types import PromptTemplate


# fmt: off
async def prompt_optimization():
    server = AgentLightningServer(host="127.0.0.1", port=9997)
    await server.start()

    prompt_candidates = [
        "You are a helpful assistant.",
        "You are a knowledgeable AI.",
        "You are a friendly chatbot.",
    ]
    prompt_and_rewards = []

    for prompt in prompt_candidates:
        # Send this prompt to all connected clients
        resources = {
            "system_prompt": PromptTemplate(template=prompt, engine="f-string")
        }
        await server.update_resources(resources)
        print(f"[Algo] Testing prompt: '{prompt}'")

        # Queue a task for clients to process
        task_id = await server.queue_task(
            sample={"prompt": "What is the capital of France?"},
            mode="train"
        )
        print(f"[Algo] Task '{task_id}' is now available for clients.")

        # Wait for a client to complete it (30 second timeout)
        rollout = await server.poll_completed_rollout(task_id, timeout=30)
        if rollout is None or rollout.final_reward is None:
            print("[Algo] No reward: no client finished the task.")
            continue

        # Extract and store the reward (this comes from the return value of the client side)
        reward = rollout.final_reward
        print(f"[Algo] Received reward: {reward:.3f}")
        print(f"[Algo] Triplets: {len(rollout.triplets or [])}, spans: {len(rollout.traces or [])}")
        prompt_and_rewards.append((prompt, reward))

    if prompt_and_rewards:
        best_prompt = max(prompt_and_rewards, key=lambda x: x[1])
        print(f"Best prompt: '{best_prompt[0]}' with reward {best_prompt[1]:.3f}")
        print(f"[Algo] Best prompt: '{best_prompt[0]}' (reward: {best_prompt[1]:.3f})")
    await server.stop()
# fmt: on


if __name__ == "__main__":
    setup_logging()
    asyncio.run(prompt_optimization())
