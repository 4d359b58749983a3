"""What agentlightning.execution.client_server was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
