"""The import path agentlightning.store.threading of the older releases."""

from agentlightning.rest.server.threaded_store import LightningStoreThreaded as LightningStoreThreaded
