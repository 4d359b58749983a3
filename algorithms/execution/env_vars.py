"""Settings from environment variables: the one place below the commands that reads them, for launching by roles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum

from ...core.errors import InvalidInput

__all__ = [
    "LightningEnvVar",
    "resolve_bool_env_var",
    "resolve_int_env_var",
    "resolve_str_env_var",
    "secrets",
    "token",
]

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class LightningEnvVar(Enum):
    """The variables that programs are launched by; each value is the variable's name."""

    AGL_EMITTER_DEBUG = "AGL_EMITTER_DEBUG"
    AGL_MANAGED_STORE = "AGL_MANAGED_STORE"
    AGL_CURRENT_ROLE = "AGL_CURRENT_ROLE"
    AGL_SERVER_HOST = "AGL_SERVER_HOST"
    AGL_SERVER_PORT = "AGL_SERVER_PORT"


def _read(env_var: LightningEnvVar | str) -> str | None:
    return os.environ.get(env_var.value if isinstance(env_var, LightningEnvVar) else env_var)


def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, fallback: bool | None = None
) -> bool | None:
    """``override``, else what the variable says, else ``fallback``. ValueError for a word that is neither yes nor no."""
    if override is not None:
        return override
    text = _read(env_var)
    if text is None:
        return fallback
    word = text.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise InvalidInput(f"{env_var.value} must be one of {', '.join((*_TRUE, *_FALSE))}, not {text!r:.40}")
    return word in _TRUE


def resolve_int_env_var(
    env_var: LightningEnvVar, override: int | None = None, fallback: int | None = None
) -> int | None:
    """``override``, else the variable's number, else ``fallback``. ValueError for what is no number."""
    if override is not None:
        return override
    text = _read(env_var)
    if text is None:
        return fallback
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"{env_var.value} must be an integer, not {text!r:.40}") from None


def resolve_str_env_var(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None:
    """``override``, else the variable's text, else ``fallback``."""
    return override if override is not None else (_read(env_var) or fallback)


def token() -> str | None:
    """The store's token, AGL_TOKEN; None where it is not set."""
    return _read("AGL_TOKEN") or None


def secrets() -> Mapping[str, str]:
    """Where the security options of a log on Kafka are looked up that its address does not have."""
    return os.environ
