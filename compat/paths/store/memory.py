"""What agentlightning.store.memory was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.store.memory_store import InMemoryLightningStore as InMemoryLightningStore
