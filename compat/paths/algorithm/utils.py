"""The import path agentlightning.algorithm.utils of the older releases."""

from agentlightning.algorithms.algorithm import with_llm_proxy as with_llm_proxy
from agentlightning.algorithms.algorithm import with_store as with_store
from agentlightning.algorithms.datasets import batch_iter_over_dataset as batch_iter_over_dataset
