"""The import path agentlightning.litagent of the older releases."""

from .decorator import FunctionalLitAgent as FunctionalLitAgent
from .decorator import llm_rollout as llm_rollout
from .decorator import prompt_rollout as prompt_rollout
from .decorator import rollout as rollout
from .litagent import LitAgent as LitAgent
from .litagent import is_v0_1_rollout_api as is_v0_1_rollout_api
