"""What agentlightning.store.base was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.contract import LightningStore as LightningStore
from agentlightning.core.store_terms import LightningStoreCapabilities as LightningStoreCapabilities
from agentlightning.core.store_terms import LightningStoreStatistics as LightningStoreStatistics
from agentlightning.core.store_terms import UNSET as UNSET
from agentlightning.core.store_terms import Unset as Unset
from agentlightning.core.store_terms import is_finished as is_finished
from agentlightning.core.store_terms import is_queuing as is_queuing
from agentlightning.core.store_terms import is_running as is_running
