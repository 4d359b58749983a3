"""The import path agentlightning.runner of the older releases."""


from .agent import LitAgentRunner as LitAgentRunner
from .base import Runner as Runner
from .legacy import LegacyAgentRunner as LegacyAgentRunner

AgentRunner = LegacyAgentRunner
