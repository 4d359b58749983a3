"""The import path agentlightning.reward of the older releases, which can be called as the decorator `agl.reward`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from agentlightning.core.spans.rewards import find_final_reward as find_final_reward
from agentlightning.core.spans.rewards import find_reward_spans as find_reward_spans
from agentlightning.core.spans.rewards import get_reward_value as get_reward_value
from agentlightning.core.spans.rewards import get_rewards_from_span as get_rewards_from_span
from agentlightning.core.spans.rewards import is_reward_span as is_reward_span
from agentlightning.runners.emit import emit_reward as emit_reward
from agentlightning.runners.emit import reward as reward


class _CallableModule(ModuleType):
    """An import of this module replaces the function `agl.reward`, so the module stands for it."""

    def __call__(self, fn: Callable[..., Any]) -> Any:
        return reward(fn)


sys.modules[__name__].__class__ = _CallableModule
