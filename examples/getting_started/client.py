"""The client of the tutorial "Getting Started": an agent and the two workers that run it."""

import os
import random
from pathlib import Path

import openai

from agentlightning import setup_logging
from agentlightning.litagent import LitAgent
from agentlightning.trainer import Trainer


# fmt: off
class SimpleAgent(LitAgent):
    def training_rollout(self, task, rollout_id, resources):
        """Execute a single training rollout."""
        print("Resources:", resources)

        # Extract the system prompt being tested
        system_prompt = resources["system_prompt"].template

        # Call OpenAI with this prompt
        result = openai.chat.completions.create(
            model="gpt-4o-mini",
            messages=[
                {"role": "system", "content": system_prompt},
                {"role": "user", "content": task["prompt"]},
            ],
        )
        print("Result:", result.choices[0].message.content)

        # In real scenarios, calculate based on response quality
        return random.uniform(0, 1)
# fmt: on


def read_env(path: Path = Path(".env")) -> None:
    """Takes the credentials from a file `.env`, if there is one; what is set in the environment wins."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        name, equals, value = line.partition("#")[0].strip().partition("=")
        if equals:
            os.environ.setdefault(name.strip(), value.strip().strip("'\""))
    if "OPENAI_API_BASE" in os.environ:  # the name of the tutorial; the library reads the other one
        os.environ.setdefault("OPENAI_BASE_URL", os.environ["OPENAI_API_BASE"])


if __name__ == "__main__":
    setup_logging()
    read_env()
    agent = SimpleAgent()
    trainer = Trainer(n_workers=2)  # Create 2 parallel workers
    trainer.fit(agent, backend="http://127.0.0.1:9997")
