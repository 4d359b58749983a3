"""Names of spans and attributes that mean something to this package."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel

__all__ = [
    "AGL_ANNOTATION",
    "AGL_EXCEPTION",
    "AGL_MESSAGE",
    "AGL_OBJECT",
    "AGL_OPERATION",
    "AGL_OUTPUT",
    "AGL_REWARD",
    "AGL_VIRTUAL",
    "LightningResourceAttributes",
    "LightningSpanAttributes",
    "LinkAttributes",
    "LinkPydanticModel",
    "RewardAttributes",
    "RewardPydanticModel",
]

AGL_ANNOTATION = "agentlightning.annotation"
AGL_MESSAGE = "agentlightning.message"
AGL_OBJECT = "agentlightning.object"
AGL_EXCEPTION = "agentlightning.exception"
AGL_OPERATION = "agentlightning.operation"
AGL_REWARD = "agentlightning.reward"
AGL_OUTPUT = "agentlightning.output"
AGL_VIRTUAL = "agentlightning.virtual"


class LightningResourceAttributes(Enum):
    """Attributes that say which attempt a span belongs to; on the span or on its resource."""

    ROLLOUT_ID = "agentlightning.rollout_id"
    ATTEMPT_ID = "agentlightning.attempt_id"
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"
    TRACER_NAME = "agentlightning.tracer.name"


class LightningSpanAttributes(Enum):
    """Attributes of the spans that emitters write.

    REWARD is a prefix: ``agentlightning.reward.<i>.name`` and ``.value``, i from 0; index 0 is
    the primary reward. LINK: ``agentlightning.link.<i>.key_match`` and ``.value_match``; the keys
    ``trace_id`` and ``span_id`` match span ids, any other an attribute, exactly. TAG:
    ``agentlightning.tag.<i>``. OPERATION_INPUT and OPERATION_OUTPUT are prefixes as well;
    OPERATION_OUTPUT may also be the whole key.
    """

    REWARD = "agentlightning.reward"
    LINK = "agentlightning.link"
    TAG = "agentlightning.tag"
    MESSAGE_BODY = "agentlightning.message.body"
    OBJECT_TYPE = "agentlightning.object.type"
    OBJECT_LITERAL = "agentlightning.object.literal"
    OBJECT_JSON = "agentlightning.object.json"
    OPERATION_NAME = "agentlightning.operation.name"
    OPERATION_INPUT = "agentlightning.operation.input"
    OPERATION_OUTPUT = "agentlightning.operation.output"


class RewardAttributes(Enum):
    """Last part of the keys below ``agentlightning.reward.<i>``."""

    REWARD_NAME = "name"
    REWARD_VALUE = "value"


class RewardPydanticModel(BaseModel):
    """One dimension of a reward."""

    name: str
    value: float


class LinkAttributes(Enum):
    """Last part of the keys below ``agentlightning.link.<i>``."""

    KEY_MATCH = "key_match"
    VALUE_MATCH = "value_match"


class LinkPydanticModel(BaseModel):
    """One condition of a link from a span to other spans."""

    key_match: str
    value_match: str
