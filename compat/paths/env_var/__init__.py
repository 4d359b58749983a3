"""What agentlightning.env_var was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution.env_vars import LightningEnvVar as LightningEnvVar
from agentlightning.algorithms.execution.env_vars import resolve_bool_env_var as resolve_bool_env_var
from agentlightning.algorithms.execution.env_vars import resolve_int_env_var as resolve_int_env_var
from agentlightning.algorithms.execution.env_vars import resolve_str_env_var as resolve_str_env_var
