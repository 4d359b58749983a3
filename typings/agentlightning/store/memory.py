"""What agentlightning.store.memory was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.memory_store import InMemoryLightningStore as InMemoryLightningStore
