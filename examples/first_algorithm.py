"""The three terminals of the tutorial "Write the First Algorithm": a store, a runner and an algorithm."""

# ruff: noqa: F541 (the two functions below are printed like this in the tutorial, to the letter)

import argparse
import asyncio
import random

from openai import OpenAI

import agentlightning as agl
from agentlightning import AgentOpsTracer, LitAgentRunner, PromptTemplate, find_final_reward


# fmt: off
async def find_best_prompt(store, prompts_to_test, task_input):
    """A simple algorithm to find the best prompt from a list."""
    results = []

    # Iterate through each prompt to test it
    for prompt in prompts_to_test:
        print(f"[Algo] Updating prompt template to: '{prompt}'")

        # 1. Update the resources in the store with the new prompt
        resources_update = await store.add_resources(
            resources={"prompt_template": prompt}
        )

        # 2. Enqueue a rollout task for a runner to execute
        print("[Algo] Queuing task for clients...")
        rollout = await store.enqueue_rollout(
            input=task_input,
            resources_id=resources_update.resources_id,
        )
        print(f"[Algo] Task '{rollout.rollout_id}' is now available for clients.")

        # 3. Wait for the rollout to be completed by a runner
        await store.wait_for_rollouts([rollout.rollout_id])

        # 4. Query the completed rollout and its spans
        completed_rollout = (await store.query_rollouts([rollout.rollout_id]))[0]
        print(f"[Algo] Received Result: {completed_rollout.model_dump_json(indent=None)}")

        spans = await store.query_spans(rollout.rollout_id)
        # We expect at least two spans: one for the LLM call and one for the final reward
        print(f"[Algo] Queried Spans:\n  - " + "\n  - ".join(str(span) for span in spans))
        # find_final_reward is a helper function to extract the reward span
        final_reward = find_final_reward(spans)
        print(f"[Algo] Final reward: {final_reward}\n")

        results.append((prompt, final_reward))

    # 5. Find and print the best prompt based on the collected rewards
    print(f"[Algo] All prompts and their rewards: {results}")
    best_prompt, best_reward = max(results, key=lambda item: item[1])
    print(f"[Algo] Best prompt found: '{best_prompt}' with reward {best_reward}")


def simple_agent(task: str, prompt_template: PromptTemplate) -> float:
    """An agent that answers a question and gets judged by an LLM."""
    client = OpenAI()

    # Generate a response using the provided prompt template
    prompt = prompt_template.format(any_question=task)
    response = client.chat.completions.create(
        model="gpt-4.1-nano", messages=[{"role": "user", "content": prompt}]
    )
    llm_output = response.choices[0].message.content
    print(f"[Rollout] LLM returned: {llm_output}")

    # This llm_output and the final score are automatically logged as spans by the Tracer
    score = random.uniform(0, 1)  # Replace with actual scoring logic if needed
    return score
# fmt: on


async def algo(address: str) -> None:
    """Try three prompts and print the best one."""
    prompts_to_test = [
        "You are a helpful assistant. {any_question}",
        "You are a knowledgeable AI. {any_question}",
        "You are a friendly chatbot. {any_question}",
    ]
    task_input = "Why is the sky blue?"
    store = agl.LightningStoreClient(address)
    try:
        await find_best_prompt(store, prompts_to_test, task_input)
    finally:
        await store.close()


async def run(address: str) -> None:
    """Wait for tasks and execute them, until stopped."""
    store = agl.LightningStoreClient(address)
    runner = LitAgentRunner[str](tracer=AgentOpsTracer())
    try:
        with runner.run_context(agent=simple_agent, store=store):  # <-- where the wrapping and instrumentation happens
            await runner.iter()  # polling for new tasks forever
    finally:
        await store.close()


def main() -> None:
    """``algo`` or ``runner``; the store is ``agl store`` in a terminal of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["algo", "runner"])
    parser.add_argument("--store", default="http://localhost:4747", help="address of the store")
    arguments = parser.parse_args()
    agl.setup_logging()
    try:
        asyncio.run(algo(arguments.store) if arguments.role == "algo" else run(arguments.store))
    except KeyboardInterrupt:
        print(f"[{arguments.role.capitalize()}] Stopped.")


if __name__ == "__main__":
    main()
