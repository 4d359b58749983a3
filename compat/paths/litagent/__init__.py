"""What agentlightning.litagent was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.agent.decorators import FunctionalLitAgent as FunctionalLitAgent
from agentlightning.runners.agent.litagent import LitAgent as LitAgent
from agentlightning.runners.agent.litagent import is_v0_1_rollout_api as is_v0_1_rollout_api
from agentlightning.runners.agent.decorators import llm_rollout as llm_rollout
from agentlightning.runners.agent.decorators import prompt_rollout as prompt_rollout
from agentlightning.runners.agent.decorators import rollout as rollout
