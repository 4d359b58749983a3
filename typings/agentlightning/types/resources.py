"""What agentlightning.types.resources was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.resources import LLM as LLM
from agentlightning.core.resources import NamedResources as NamedResources
from agentlightning.core.resources import PromptTemplate as PromptTemplate
from agentlightning.core.resources import ProxyLLM as ProxyLLM
from agentlightning.core.resources import Resource as Resource
from agentlightning.core.resources import ResourceUnion as ResourceUnion
from agentlightning.core.resources import ResourcesUpdate as ResourcesUpdate
