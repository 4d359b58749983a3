"""The import path agentlightning.emitter.reward of the older releases."""

from agentlightning.core.spans.rewards import find_final_reward as find_final_reward
from agentlightning.core.spans.rewards import find_reward_spans as find_reward_spans
from agentlightning.core.spans.rewards import get_reward_value as get_reward_value
from agentlightning.core.spans.rewards import get_rewards_from_span as get_rewards_from_span
from agentlightning.core.spans.rewards import is_reward_span as is_reward_span
from agentlightning.runners.emit import emit_reward as emit_reward
from agentlightning.runners.emit import reward as reward
