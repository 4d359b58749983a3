"""The import path agentlightning.emitter of the older releases."""

from .annotation import emit_annotation as emit_annotation
from .annotation import operation as operation
from .exception import emit_exception as emit_exception
from .message import emit_message as emit_message
from .message import get_message_value as get_message_value
from .object import emit_object as emit_object
from .object import get_object_value as get_object_value
from .reward import emit_reward as emit_reward
from .reward import find_final_reward as find_final_reward
from .reward import find_reward_spans as find_reward_spans
from .reward import get_reward_value as get_reward_value
from .reward import get_rewards_from_span as get_rewards_from_span
from .reward import is_reward_span as is_reward_span
from .reward import reward as reward
