"""The import path agentlightning.execution.client_server of the older releases."""

from agentlightning.algorithms.execution.client_server import (
    ClientServerExecutionStrategy as ClientServerExecutionStrategy,
)
