"""What agentlightning.types.resources was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.model.resources import LLM as LLM
from agentlightning.core.model.resources import NamedResources as NamedResources
from agentlightning.core.model.resources import PromptTemplate as PromptTemplate
from agentlightning.core.model.resources import ProxyLLM as ProxyLLM
from agentlightning.core.model.resources import Resource as Resource
from agentlightning.core.model.resources import ResourceUnion as ResourceUnion
from agentlightning.core.model.resources import ResourcesUpdate as ResourcesUpdate
