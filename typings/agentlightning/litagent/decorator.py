"""What agentlightning.litagent.decorator was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.decorators import FunctionalLitAgent as FunctionalLitAgent
from agentlightning.runners.decorators import llm_rollout as llm_rollout
from agentlightning.runners.decorators import prompt_rollout as prompt_rollout
from agentlightning.runners.decorators import rollout as rollout
