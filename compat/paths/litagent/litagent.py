"""What agentlightning.litagent.litagent was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.agent.litagent import LitAgent as LitAgent
from agentlightning.runners.agent.litagent import is_v0_1_rollout_api as is_v0_1_rollout_api
