"""Which requests a server answers at all: host names, and the sites whose pages a browser sends requests for.

A server on loopback is no boundary for a browser: any page that somebody opens can send it requests, and read the answers
once its own host name resolves to 127.0.0.1. So the name in `Host` has to be one of the server's, and what a browser sends
for another site (`Origin`, `Sec-Fetch-Site`) is refused. Programs that are no browsers send neither of the two.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import Scope

from ...core.errors import CrossSite, ForeignHost, InvalidInput, printable
from ..api.routes import BASIS_HEADER, COMMAND_HEADER, POSITION_HEADER, PRINT_HEADER

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{0,5})?")
NOT_PLAIN = re.compile(rb"[^\t\x20-\x7e]")
"""What no header of a request needs: control characters, NUL, and bytes beyond ASCII."""
_OWN_SITE = (b"same-origin", b"none")
_MOST_NAMES = 64
PREFLIGHT_SECONDS = 600


class AccessPolicy:
    """Judges the head of every request before anything else looks at it.

    Where the server is bound to loopback, `Host` is a name of loopback or one of `allow_hosts`. Where it is bound to more,
    there is a token, which a foreign page does not have, and the names of a machine are not known here: every name
    passes, unless `allow_hosts` says which. `origins`: whose pages may call; "*" is everybody's.
    """

    def __init__(
        self,
        host: str,
        allow_hosts: Sequence[str] = (),
        origins: Sequence[str] | str | None = None,
        access_host: str | None = None,
    ) -> None:
        names = [_name(name) for name in ([allow_hosts] if isinstance(allow_hosts, str) else allow_hosts)]
        self._any_host = not names and not is_loopback(host)
        self._names = frozenset((*names, _canonical(host), *([] if access_host is None else [_canonical(access_host)])))
        self._passed: set[bytes] = set()
        self._origins = frozenset(_origins(origins))

    def admit(self, scope: Scope) -> bytes | None:
        """The foreign origin that may read the answer, or None.

        Raises `InvalidInput` for a head that is not plain, `ForeignHost` and `CrossSite`.
        """
        hosts: list[bytes] = []
        origins: list[bytes] = []
        site = b""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if NOT_PLAIN.search(b"".join([part for header in headers for part in header])):
            raise InvalidInput("a header has characters that are not printable ASCII; percent-encode them")
        for name, value in headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value.lower())
            elif name == b"sec-fetch-site":
                site = value.lower()
        if len(hosts) != 1:
            raise InvalidInput(f"a request has one Host header, not {len(hosts)}")
        if hosts[0] not in self._passed:
            self._check_host(hosts[0])
        foreign = None
        for origin in origins:
            if origin.partition(b"://")[2] == hosts[0].lower():
                continue
            if b"*" not in self._origins and origin not in self._origins:
                raise CrossSite(
                    f"a page of {printable(origin.decode('latin-1'))} may not call this store; "
                    "--cors-origin ORIGIN (cors_allow_origins) lets one"
                )
            foreign = origin
        if not origins and site and site not in _OWN_SITE:
            raise CrossSite("a browser sent this request for a page of another site, which may not call this store")
        return foreign

    def _check_host(self, value: bytes) -> None:
        found = _HOST.fullmatch(value)
        if found is None:
            raise InvalidInput("the Host header is no host name")
        name = _canonical(found.group(1).decode("ascii"))
        if not (self._any_host or name in self._names or is_loopback(name)):
            raise ForeignHost(
                f"this store does not answer under the name {name}; --allow-host {name} (allow_hosts) adds it, "
                "where a proxy or another name of this machine leads here"
            )
        if len(self._passed) < _MOST_NAMES:
            self._passed.add(value)

    def answer_headers(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """What lets a page of `origin` read an answer."""
        readable = ", ".join((POSITION_HEADER, PRINT_HEADER, "Retry-After")).encode()
        headers = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", readable)]
        if b"*" not in self._origins:
            headers.append((b"access-control-allow-credentials", b"true"))
        return [*headers, (b"vary", b"Origin")]

    def preflight_headers(self, origin: bytes, scope: Scope) -> list[tuple[bytes, bytes]] | None:
        """The answer to a browser that asks whether a page of `origin` may send a request; None for any other request."""
        asked = dict(scope["headers"])
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in asked:
            return None
        sent = ", ".join(
            ("Authorization", "Content-Type", "Last-Event-ID", COMMAND_HEADER, BASIS_HEADER, POSITION_HEADER)
        )
        headers = [
            *self.answer_headers(origin),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", asked.get(b"access-control-request-headers", sent.encode())),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]
        if asked.get(b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers


def is_loopback(name: str) -> bool:
    """Whether a host name or address, without brackets, means this machine only."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _canonical(name: str) -> str:
    name = name.strip().lower().strip("[]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _name(text: str) -> str:
    name = _canonical(text)
    if (
        ":" not in name
        and _HOST.fullmatch(name.encode("ascii", "replace")) is None
        or ":" in name
        and name.count(":") < 2
    ):
        raise InvalidInput(
            f"{text!r} is no host name: --allow-host takes names such as store.example.com, without a port"
        )
    return name


def _origins(value: Sequence[str] | str | None) -> list[bytes]:
    origins = [value] if isinstance(value, str) else list(value or ())
    origins = [origin.strip().rstrip("/").lower() for origin in origins if origin.strip()]
    for origin in origins:
        if origin not in ("*", "null") and "://" not in origin:
            raise InvalidInput(
                f"{origin!r} is no origin: it looks like https://dashboard.example.com or http://localhost:3000"
            )
    return [origin.encode("latin-1", "replace") for origin in origins]
