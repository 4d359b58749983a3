"""The import path agentlightning.env_var of the older releases."""

from agentlightning.algorithms.execution.env_vars import LightningEnvVar as LightningEnvVar
from agentlightning.algorithms.execution.env_vars import resolve_bool_env_var as resolve_bool_env_var
from agentlightning.algorithms.execution.env_vars import resolve_int_env_var as resolve_int_env_var
from agentlightning.algorithms.execution.env_vars import resolve_str_env_var as resolve_str_env_var
