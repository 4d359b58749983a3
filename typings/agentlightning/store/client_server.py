"""What agentlightning.store.client_server was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.rest.client import LightningStoreClient as LightningStoreClient
from agentlightning.projections.rest.server import LightningStoreServer as LightningStoreServer
