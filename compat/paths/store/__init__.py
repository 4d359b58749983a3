"""What agentlightning.store was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.store.memory_store import InMemoryLightningStore as InMemoryLightningStore
from agentlightning.core.model.store_interface import LightningStore as LightningStore
from agentlightning.core.model.store_interface import LightningStoreCapabilities as LightningStoreCapabilities
from agentlightning.rest.client.client import LightningStoreClient as LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer as LightningStoreServer
from agentlightning.core.model.store_interface import LightningStoreStatistics as LightningStoreStatistics
from agentlightning.rest.server.threaded_store import LightningStoreThreaded as LightningStoreThreaded
