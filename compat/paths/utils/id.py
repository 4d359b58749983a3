"""What agentlightning.utils.id was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.ids import generate_id as generate_id
