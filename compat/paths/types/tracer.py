"""The import path agentlightning.types.tracer of the older releases."""

from agentlightning.core.model.span import Attributes as Attributes
from agentlightning.core.model.span import AttributeValue as AttributeValue
from agentlightning.core.model.span import Event as Event
from agentlightning.core.model.span import Link as Link
from agentlightning.core.model.span import OtelResource as OtelResource
from agentlightning.core.model.span import Span as Span
from agentlightning.core.model.span import SpanAttributeNames as SpanAttributeNames
from agentlightning.core.model.span import SpanContext as SpanContext
from agentlightning.core.model.span import SpanCoreFields as SpanCoreFields
from agentlightning.core.model.span import SpanLike as SpanLike
from agentlightning.core.model.span import SpanNames as SpanNames
from agentlightning.core.model.span import SpanRecordingContext as SpanRecordingContext
from agentlightning.core.model.span import StatusCode as StatusCode
from agentlightning.core.model.span import TraceState as TraceState
from agentlightning.core.model.span import TraceStatus as TraceStatus
from agentlightning.core.model.span import convert_timestamp as convert_timestamp
