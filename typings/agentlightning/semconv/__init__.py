"""What agentlightning.semconv was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.semconv import AGL_ANNOTATION as AGL_ANNOTATION
from agentlightning.core.semconv import AGL_EXCEPTION as AGL_EXCEPTION
from agentlightning.core.semconv import AGL_MESSAGE as AGL_MESSAGE
from agentlightning.core.semconv import AGL_OBJECT as AGL_OBJECT
from agentlightning.core.semconv import AGL_OPERATION as AGL_OPERATION
from agentlightning.core.semconv import AGL_REWARD as AGL_REWARD
from agentlightning.core.semconv import AGL_VIRTUAL as AGL_VIRTUAL
from agentlightning.core.semconv import LightningResourceAttributes as LightningResourceAttributes
from agentlightning.core.semconv import LightningSpanAttributes as LightningSpanAttributes
from agentlightning.core.semconv import LinkAttributes as LinkAttributes
from agentlightning.core.semconv import LinkPydanticModel as LinkPydanticModel
from agentlightning.core.semconv import RewardAttributes as RewardAttributes
from agentlightning.core.semconv import RewardPydanticModel as RewardPydanticModel
