"""The import path agentlightning.store.client_server of the older releases."""

from agentlightning.rest.client.client import LightningStoreClient as LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer as LightningStoreServer
