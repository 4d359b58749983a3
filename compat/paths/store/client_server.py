"""What agentlightning.store.client_server was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.rest.client.client import LightningStoreClient as LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer as LightningStoreServer
