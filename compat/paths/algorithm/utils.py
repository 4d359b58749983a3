"""The import path agentlightning.algorithm.utils of the older releases."""

from agentlightning.algorithms.helpers import batch_iter_over_dataset as batch_iter_over_dataset
from agentlightning.algorithms.helpers import with_llm_proxy as with_llm_proxy
from agentlightning.algorithms.helpers import with_store as with_store
