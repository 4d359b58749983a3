"""The import path agentlightning.store.base of the older releases."""

from agentlightning.core.model.store_interface import UNSET as UNSET
from agentlightning.core.model.store_interface import LightningStore as LightningStore
from agentlightning.core.model.store_interface import LightningStoreCapabilities as LightningStoreCapabilities
from agentlightning.core.model.store_interface import LightningStoreStatistics as LightningStoreStatistics
from agentlightning.core.model.store_interface import Unset as Unset
from agentlightning.core.model.store_interface import is_finished as is_finished
from agentlightning.core.model.store_interface import is_queuing as is_queuing
from agentlightning.core.model.store_interface import is_running as is_running
