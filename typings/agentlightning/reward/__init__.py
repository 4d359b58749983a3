"""What agentlightning.reward was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emitters import emit_reward as emit_reward
from agentlightning.runners.readers import find_final_reward as find_final_reward
from agentlightning.runners.readers import find_reward_spans as find_reward_spans
from agentlightning.runners.readers import get_reward_value as get_reward_value
from agentlightning.runners.readers import get_rewards_from_span as get_rewards_from_span
from agentlightning.runners.readers import is_reward_span as is_reward_span
from agentlightning.runners.rewards import reward as reward
