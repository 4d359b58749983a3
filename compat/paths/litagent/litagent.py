"""The import path agentlightning.litagent.litagent of the older releases."""

from agentlightning.runners.agent.litagent import LitAgent as LitAgent
from agentlightning.runners.agent.litagent import is_v0_1_rollout_api as is_v0_1_rollout_api
