"""What agentlightning.litagent.litagent was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.agents import LitAgent as LitAgent
from agentlightning.runners.agents import is_v0_1_rollout_api as is_v0_1_rollout_api
