"""The import path agentlightning.litagent.decorator of the older releases."""

from agentlightning.runners.agent.decorators import FunctionalLitAgent as FunctionalLitAgent
from agentlightning.runners.agent.decorators import llm_rollout as llm_rollout
from agentlightning.runners.agent.decorators import prompt_rollout as prompt_rollout
from agentlightning.runners.agent.decorators import rollout as rollout
