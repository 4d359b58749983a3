"""What agentlightning.types.tracer was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.spans import AttributeValue as AttributeValue
from agentlightning.core.spans import Attributes as Attributes
from agentlightning.core.spans import Event as Event
from agentlightning.core.spans import Link as Link
from agentlightning.core.spans import OtelResource as OtelResource
from agentlightning.core.spans import Span as Span
from agentlightning.core.spans import SpanAttributeNames as SpanAttributeNames
from agentlightning.core.spans import SpanContext as SpanContext
from agentlightning.core.spans import SpanCoreFields as SpanCoreFields
from agentlightning.core.spans import SpanLike as SpanLike
from agentlightning.core.spans import SpanNames as SpanNames
from agentlightning.core.spans import SpanRecordingContext as SpanRecordingContext
from agentlightning.core.spans import StatusCode as StatusCode
from agentlightning.core.spans import TraceState as TraceState
from agentlightning.core.spans import TraceStatus as TraceStatus
from agentlightning.core.spans import convert_timestamp as convert_timestamp
