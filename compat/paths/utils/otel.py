"""What agentlightning.utils.otel was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.spans.attributes import check_attributes_sanity as check_attributes_sanity
from agentlightning.core.spans.links import extract_links_from_attributes as extract_links_from_attributes
from agentlightning.core.spans.links import extract_tags_from_attributes as extract_tags_from_attributes
from agentlightning.core.spans.attributes import filter_and_unflatten_attributes as filter_and_unflatten_attributes
from agentlightning.core.spans.attributes import filter_attributes as filter_attributes
from agentlightning.core.spans.attributes import flatten_attributes as flatten_attributes
from agentlightning.core.spans.attributes import format_exception_attributes as format_exception_attributes
from agentlightning.core.spans.attributes import full_qualified_name as full_qualified_name
from agentlightning.runners.tracing.otel_access import get_tracer as get_tracer
from agentlightning.runners.tracing.otel_access import get_tracer_provider as get_tracer_provider
from agentlightning.core.spans.links import make_link_attributes as make_link_attributes
from agentlightning.core.spans.links import make_tag_attributes as make_tag_attributes
from agentlightning.core.spans.links import query_linked_spans as query_linked_spans
from agentlightning.core.spans.attributes import sanitize_attribute_value as sanitize_attribute_value
from agentlightning.core.spans.attributes import sanitize_attributes as sanitize_attributes
from agentlightning.core.spans.attributes import sanitize_list_attribute_sanity as sanitize_list_attribute_sanity
from agentlightning.core.spans.attributes import unflatten_attributes as unflatten_attributes
