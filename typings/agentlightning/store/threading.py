"""What agentlightning.store.threading was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.rest.threaded import LightningStoreThreaded as LightningStoreThreaded
