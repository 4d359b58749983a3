"""What agentlightning.env_var was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.environment import LightningEnvVar as LightningEnvVar
from agentlightning.algorithms.environment import resolve_bool_env_var as resolve_bool_env_var
from agentlightning.algorithms.environment import resolve_int_env_var as resolve_int_env_var
from agentlightning.algorithms.environment import resolve_str_env_var as resolve_str_env_var
