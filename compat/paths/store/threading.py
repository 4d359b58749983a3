"""What agentlightning.store.threading was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.rest.server.threaded_store import LightningStoreThreaded as LightningStoreThreaded
