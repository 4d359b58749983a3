"""What agentlightning.store was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.memory_store import InMemoryLightningStore as InMemoryLightningStore
from agentlightning.core.contract import LightningStore as LightningStore
from agentlightning.core.store_terms import LightningStoreCapabilities as LightningStoreCapabilities
from agentlightning.projections.rest.client import LightningStoreClient as LightningStoreClient
from agentlightning.projections.rest.server import LightningStoreServer as LightningStoreServer
from agentlightning.core.store_terms import LightningStoreStatistics as LightningStoreStatistics
from agentlightning.projections.rest.threaded import LightningStoreThreaded as LightningStoreThreaded
