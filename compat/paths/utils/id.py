"""The import path agentlightning.utils.id of the older releases."""

from agentlightning.core.ids import generate_id as generate_id
