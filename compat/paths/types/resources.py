"""The import path agentlightning.types.resources of the older releases."""

from agentlightning.core.model.resources import LLM as LLM
from agentlightning.core.model.resources import NamedResources as NamedResources
from agentlightning.core.model.resources import PromptTemplate as PromptTemplate
from agentlightning.core.model.resources import ProxyLLM as ProxyLLM
from agentlightning.core.model.resources import Resource as Resource
from agentlightning.core.model.resources import ResourcesUpdate as ResourcesUpdate
from agentlightning.core.model.resources import ResourceUnion as ResourceUnion
