"""What agentlightning.litagent was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.decorators import FunctionalLitAgent as FunctionalLitAgent
from agentlightning.runners.agents import LitAgent as LitAgent
from agentlightning.runners.agents import is_v0_1_rollout_api as is_v0_1_rollout_api
from agentlightning.runners.decorators import llm_rollout as llm_rollout
from agentlightning.runners.decorators import prompt_rollout as prompt_rollout
from agentlightning.runners.decorators import rollout as rollout
