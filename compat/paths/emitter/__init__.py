"""What agentlightning.emitter was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emit.emitters import emit_annotation as emit_annotation
from agentlightning.runners.emit.emitters import emit_exception as emit_exception
from agentlightning.runners.emit.emitters import emit_message as emit_message
from agentlightning.runners.emit.emitters import emit_object as emit_object
from agentlightning.runners.emit.emitters import emit_reward as emit_reward
from agentlightning.core.spans.readers import find_final_reward as find_final_reward
from agentlightning.core.spans.readers import find_reward_spans as find_reward_spans
from agentlightning.core.spans.readers import get_message_value as get_message_value
from agentlightning.core.spans.readers import get_object_value as get_object_value
from agentlightning.core.spans.readers import get_reward_value as get_reward_value
from agentlightning.core.spans.readers import get_rewards_from_span as get_rewards_from_span
from agentlightning.core.spans.readers import is_reward_span as is_reward_span
from agentlightning.runners.emit.operation import operation as operation
from agentlightning.runners.emit.reward import reward as reward
