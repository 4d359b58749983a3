"""What agentlightning.utils was; written from compat/old_paths.py by tests/make_stubs.py."""

