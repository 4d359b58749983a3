"""What agentlightning.trainer.init_utils was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.components import build_component as build_component
