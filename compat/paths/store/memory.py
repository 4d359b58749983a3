"""The import path agentlightning.store.memory of the older releases."""

from agentlightning.projections.store.memory_store import InMemoryLightningStore as InMemoryLightningStore
