"""The import path agentlightning.store of the older releases."""

from .base import LightningStore as LightningStore
from .base import LightningStoreCapabilities as LightningStoreCapabilities
from .base import LightningStoreStatistics as LightningStoreStatistics
from .client_server import LightningStoreClient as LightningStoreClient
from .client_server import LightningStoreServer as LightningStoreServer
from .memory import InMemoryLightningStore as InMemoryLightningStore
from .threading import LightningStoreThreaded as LightningStoreThreaded
