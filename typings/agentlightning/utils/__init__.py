"""What agentlightning.utils was; written from cli/old_paths.py by tests/make_stubs.py."""

