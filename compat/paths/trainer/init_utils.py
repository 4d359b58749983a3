"""What agentlightning.trainer.init_utils was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.trainer.components import build_component as build_component
