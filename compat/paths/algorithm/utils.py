"""What agentlightning.algorithm.utils was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.helpers import batch_iter_over_dataset as batch_iter_over_dataset
from agentlightning.algorithms.helpers import with_llm_proxy as with_llm_proxy
from agentlightning.algorithms.helpers import with_store as with_store
