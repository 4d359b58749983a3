"""The import path agentlightning.store.threading of the older releases."""

from agentlightning.rest.server.delegating_store import LightningStoreThreaded as LightningStoreThreaded
