"""What agentlightning.execution.client_server was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
