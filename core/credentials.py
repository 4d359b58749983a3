"""Secrets in resources and addresses: how they are masked for people, and how a reference to one is resolved.

A key in a resource is stored in the log as it is given. A reference, `env:NAME` or `file:/path`, is stored instead of the key
and read by the runner, in its own process, when it hands the resource to an agent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from .errors import InvalidInput

MASK = "***"
_CREDENTIALS = re.compile(r"(?<=[A-Za-z0-9+.-]://)[^\s/?#@\"']+@")
"""Begins behind the scheme: looking for the beginning of one takes quadratic time in a long text without any."""
_NAMED = re.compile(
    r"(?i)(^|[-_.])(authorization|api[-_]?key|secret|password|passwd|cookie|credentials?|(access|auth|bearer)[-_]?token)$"
)
_HEADERS = re.compile(r"(?i)(^|[-_.])headers$")
_HEADER = re.compile(r"(?i)headers?[._](authorization|proxy-authorization|cookie|[a-z-]*(key|token|secret)[a-z-]*)$")
_PARAMETERS = re.compile(r"(?i)(parameters|kwargs)$")
_ADDRESS = re.compile(r"(?i)(url|uri|base|endpoint|address|url\.full|exception\.(message|stacktrace))$")
_NAME_END = 200
"""Characters at the end of an attribute's name that say what it holds: callers choose names of any length."""
_OPTION = re.compile(r"(?i)([?&;](?:[a-z0-9_.-]*[_.-])?(?:api_?key|token|secret|password|sig|signature)=)[^&;#\s\"']+")


def mask_text(text: str) -> str:
    """A text with the credentials of every address in it masked: before an `@`, and in options such as `api_key=`."""
    if "://" not in text:
        return text
    return _OPTION.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", text))


def mask_value(name: str, value: Any) -> Any:
    """A copy of a value, for people: texts under the name of a secret and all headers are masked, at any depth."""
    if _NAMED.search(name) and value is not None:
        return value if is_reference(value) else MASK
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        if _HEADERS.search(name):
            return {key: MASK for key, _ in items}
        return {key: mask_value(str(key), one) for key, one in items}
    if isinstance(value, list | tuple):
        return [mask_value(name, one) for one in cast("list[Any]", value)]
    if isinstance(value, str):
        return MASK if _HEADERS.search(name) else mask_text(value)
    return value


def mask_attributes(attributes: dict[str, Any]) -> None:
    """Mask, in place, what instrumentations record of secrets: headers of requests, and credentials in addresses and errors."""
    for name, value in attributes.items():
        kind = _kind_of(name[-_NAME_END:])
        if kind == "headers":
            attributes[name] = MASK
        elif kind == "parameters" and isinstance(value, str) and "headers" in value:
            attributes[name] = _masked_json(value)
        elif kind == "address" and isinstance(value, str):
            attributes[name] = mask_text(value)


@lru_cache(4096)
def _kind_of(name: str) -> str:
    """What an attribute of this name holds that may have secrets in it; empty for any other."""
    if _HEADERS.search(name) or _HEADER.search(name):
        return "headers"
    return "parameters" if _PARAMETERS.search(name) else "address" if _ADDRESS.search(name) else ""


def _masked_json(text: str) -> str:
    try:
        return json.dumps(mask_value("", json.loads(text)))
    except (ValueError, RecursionError):
        return MASK  # headers are in it, and where is not known


def is_reference(value: Any) -> bool:
    """Whether a key is not the key itself but says where it is: `env:NAME` or `file:/path`."""
    return isinstance(value, str) and value.startswith(("env:", "file:"))


def resolved(value: str, what: str) -> str:
    """The secret that a reference stands for; any other text is the secret itself.

    `what` names its owner in the error. Raises `InvalidInput` where there is no such variable or file in this process.
    """
    kind, _, where = value.partition(":")
    if kind == "env":
        found = os.environ.get(where, "")
        if not found:
            raise InvalidInput(f"{what} names the environment variable {where}, which is not set where the runner is")
        return found
    if kind == "file":
        try:
            return Path(where).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InvalidInput(
                f"{what} names the file {where}, which cannot be read where the runner is: {reason}"
            ) from error
    return value
