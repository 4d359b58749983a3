"""The address of a log on Kafka, `kafka://host:9092,other:9092/prefix?option=value`, and the options of a client for it."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ...errors import InvalidInput

ENVIRONMENT = "AGL_KAFKA_"
"""Every security option may come from the environment instead: AGL_KAFKA_SASL_PASSWORD and so on."""
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
SECRET_OPTIONS = frozenset({"sasl_password", "ssl_password", "sasl_token"})
_SASL = frozenset({"sasl_mechanism", "sasl_username", "sasl_password", "sasl_token"})
_SSL = frozenset({"ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password"})
SECURITY = frozenset({"security_protocol"}) | _SASL | _SSL


class _Logins(logging.Filter):
    """Keeps logins out of the client's log: at DEBUG it writes down every request, PLAIN's password and tokens in plain text.

    PLAIN without TLS still sends them in plain text at every connection (docs/how-to/scale-out-on-kafka.md).
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Logging's hook."""
        given = record.args if isinstance(record.args, tuple) else ()
        if any(type(one).__name__.startswith("SaslAuthenticate") for one in given):
            return False
        return record.msg != "Sending username and password in the clear"


_LOGINS = _Logins()


def checked(given: Mapping[str, str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options that count: those of the address, and those of the environment that fit them.

    An option of the address that its protocol would ignore is refused: who writes a password there believes that it is
    used. One of the environment is left out, since one environment serves several addresses. Raises `InvalidInput`.
    """
    found = {name: text for name in sorted(SECURITY) if (text := (environment or {}).get(ENVIRONMENT + name.upper()))}
    protocol = given.get("security_protocol") or found.get("security_protocol")
    if protocol is None:
        if given:
            what = "credentials" if _SASL & given.keys() else "certificates"
            better = "SASL_SSL" if _SASL & given.keys() else "SSL"
            raise InvalidInput(f"the address has {what} and no security_protocol; add security_protocol={better}")
        return {}
    if protocol not in PROTOCOLS:
        raise InvalidInput(f"security_protocol is {protocol!r}; it takes {', '.join(PROTOCOLS)}")
    fits: set[str] = {"security_protocol", *(_SASL if "SASL" in protocol else ()), *(_SSL if "SSL" in protocol else ())}
    for name in sorted(given.keys() - fits):
        verb = "sends" if name in _SASL else "uses"
        raise InvalidInput(f"{protocol} {verb} no {name}; name another security_protocol, or leave {name} out")
    made = {name: text for name, text in {**found, **given}.items() if name in fits}
    _complete(protocol, made)
    return made


def _complete(protocol: str, made: Mapping[str, str]) -> None:
    mechanism = made.get("sasl_mechanism")
    if mechanism is not None and mechanism not in MECHANISMS:
        raise InvalidInput(f"sasl_mechanism is {mechanism!r}; it takes {', '.join(MECHANISMS)}")
    if "SASL" in protocol:
        for name in ("sasl_token",) if mechanism == "OAUTHBEARER" else ("sasl_username", "sasl_password"):
            if not made.get(name):
                raise InvalidInput(f"{protocol} needs {name}; set {ENVIRONMENT}{name.upper()} in the environment")
    if made.get("ssl_keyfile") and not made.get("ssl_certfile"):
        raise InvalidInput("ssl_keyfile needs ssl_certfile, the certificate that the key belongs to")


def client_options(security: Mapping[str, str]) -> dict[str, Any]:
    """What a client of the broker is given. Raises `InvalidInput` for certificates that cannot be loaded."""
    protocol = security.get("security_protocol", "PLAINTEXT")
    made: dict[str, Any] = {"security_protocol": protocol}
    if "SSL" in protocol:
        made["ssl_context"] = _ssl_context(security)
    if "SASL" in protocol:
        logging.getLogger("aiokafka.conn").addFilter(_LOGINS)
        made["sasl_mechanism"] = security.get("sasl_mechanism", "PLAIN")
        if made["sasl_mechanism"] == "OAUTHBEARER":
            made["sasl_oauth_token_provider"] = _token_provider(security)
        else:
            made["sasl_plain_username"] = security["sasl_username"]
            made["sasl_plain_password"] = security["sasl_password"]
    return made


def _ssl_context(security: Mapping[str, str]) -> ssl.SSLContext:
    authority, certificate = security.get("ssl_cafile"), security.get("ssl_certfile")
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInput(f"ssl_cafile {authority} cannot be loaded: {error.strerror or error}") from None
    if certificate:
        key = security.get("ssl_keyfile")
        try:
            # Never None: OpenSSL would ask the terminal for the password of a key that has one.
            context.load_cert_chain(certificate, key, security.get("ssl_password", ""))
        except OSError as error:
            where = f"ssl_certfile {certificate}" + (f" with ssl_keyfile {key}" if key else "")
            raise InvalidInput(f"{where} cannot be loaded: {error.strerror or error}") from None
    return context


def _token_provider(security: Mapping[str, str]) -> Any:
    from .aiokafka_api import AbstractTokenProvider

    base: Any = AbstractTokenProvider

    class Fixed(base):
        """The token of the address or the environment; it is not renewed."""

        async def token(self) -> str:
            return security["sasl_token"]

    return Fixed()


FORM = "kafka://host:9092[,host:9092]/prefix[?security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&...]"
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}").fullmatch
_OWN = frozenset({"wait_seconds", "state"})
OPTIONS = SECURITY | _OWN

WAIT_SECONDS = 120.0
"""How long an append waits for a broker that is away before its outcome is called unknown."""


@dataclass(frozen=True)
class KafkaAddress:
    """Where a log is and how to get in. `repr` and `url` hold no secret.

    `wait_seconds`: the policy for outages, small to fail fast. `state`: a folder in which this process keeps its copies of
    keyed topics; None: a temporary one.
    """

    bootstrap: str
    prefix: str
    wait_seconds: float = WAIT_SECONDS
    state: str | None = None
    security: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> KafkaAddress:
        """Read an address; options of the URL win over `environment`. Raises `InvalidInput` with the right form."""
        parts = urlsplit(url)
        prefix = unquote(parts.path.strip("/"))
        if parts.scheme != "kafka" or not parts.netloc or not _PREFIX(prefix):
            raise InvalidInput(f"{_without_query(url)!r} is not the address of a log on Kafka; it looks like {FORM}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - OPTIONS)
        if unknown:
            raise InvalidInput(f"unknown option {unknown[0]!r} of a kafka:// address; known are {', '.join(sorted(OPTIONS))}")
        netloc = parts.netloc
        if "@" in netloc:
            user, _, netloc = netloc.rpartition("@")
            name, _, password = user.partition(":")
            options.setdefault("sasl_username", unquote(name))
            if password:
                options.setdefault("sasl_password", unquote(password))
        security = {name: value for name, value in options.items() if name in SECURITY}
        return cls(
            bootstrap=",".join(_server(one) for one in netloc.split(",")),
            prefix=prefix,
            wait_seconds=_seconds(options.get("wait_seconds")),
            state=options.get("state"),
            security=checked(security, environment),
        )

    @property
    def url(self) -> str:
        """The address without secrets, for people and for logs."""
        shown = {name: value for name, value in self.security.items() if name not in SECRET_OPTIONS}
        query = f"?{urlencode(shown)}" if shown else ""
        return f"kafka://{self.bootstrap}/{self.prefix}{query}"

    def topic(self, name: str) -> str:
        """The topic of the broker that carries `name`."""
        return f"{self.prefix}.{name}"

    def group(self, name: str) -> str:
        """The consumer group of this log called `name`: groups of different logs on one cluster do not meet."""
        return f"{self.prefix}.{name}"

    def client(self) -> dict[str, Any]:
        """What every client of the broker is given: servers, deadline, security."""
        return {
            "bootstrap_servers": self.bootstrap.split(","),
            "request_timeout_ms": 5000,  # 40 s, the default, lets a frozen broker hold every write for so long
            **client_options(self.security),
        }


def _without_query(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def _server(text: str) -> str:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        host, port = text.strip(), "9092"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(f"{text!r} is not a server; a kafka:// address looks like {FORM}")
    return f"{host}:{port}"


def _seconds(text: str | None) -> float:
    if text is None:
        return WAIT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise InvalidInput(f"wait_seconds is {text!r}; it takes a number of seconds above 0")
    return seconds
