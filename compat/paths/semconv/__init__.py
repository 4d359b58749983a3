"""The import path agentlightning.semconv of the older releases."""

from agentlightning.core.model.semconv import AGL_ANNOTATION as AGL_ANNOTATION
from agentlightning.core.model.semconv import AGL_EXCEPTION as AGL_EXCEPTION
from agentlightning.core.model.semconv import AGL_MESSAGE as AGL_MESSAGE
from agentlightning.core.model.semconv import AGL_OBJECT as AGL_OBJECT
from agentlightning.core.model.semconv import AGL_OPERATION as AGL_OPERATION
from agentlightning.core.model.semconv import AGL_REWARD as AGL_REWARD
from agentlightning.core.model.semconv import AGL_VIRTUAL as AGL_VIRTUAL
from agentlightning.core.model.semconv import LightningResourceAttributes as LightningResourceAttributes
from agentlightning.core.model.semconv import LightningSpanAttributes as LightningSpanAttributes
from agentlightning.core.model.semconv import LinkAttributes as LinkAttributes
from agentlightning.core.model.semconv import LinkPydanticModel as LinkPydanticModel
from agentlightning.core.model.semconv import RewardAttributes as RewardAttributes
from agentlightning.core.model.semconv import RewardPydanticModel as RewardPydanticModel
