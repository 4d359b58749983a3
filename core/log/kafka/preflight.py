"""Whether a Kafka lets us in, asked once before any client is made: clients only say that they found no server.

A server that is away, or only just starting, is a matter of waiting. One that answers and refuses is not: what it takes
offence at is found out here, if need be by trying the door the other way round, and reported with the setting that mends it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from ...errors import AccessRefused, StorageError
from .address import ENVIRONMENT, MECHANISMS, KafkaAddress
from .aiokafka_api import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    MetadataRequest,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
    create_conn,
    get_ip_port_afi,
)

TRY_SECONDS = 5.0
"""How long a server may take to show how it wants to be spoken to."""
FAILURES = (KafkaError, OSError, asyncio.TimeoutError, ValueError)
"""What a connection raises; ValueError is the word for a server that does not know the password either."""
NO_RIGHT = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, ClusterAuthorizationFailedError)


class _Shut(Exception):
    """The server answered, and closed the connection at the first thing that was asked of it."""


async def enter(address: KafkaAddress) -> None:
    """Return when a server let us in.

    Raises `AccessRefused` where one answers and none lets us in, `StorageError` where none answers.
    """
    options = address.client()
    servers = options.pop("bootstrap_servers")
    refusal: AccessRefused | None = None
    silence = ""
    for server in servers:
        try:
            await _knock(server, options)
            return
        except (*FAILURES, _Shut) as error:
            why = await _reason(server, address, options, error)
            if why is None:
                silence = silence or f"{server} does not answer ({_words(error)})"
            else:
                refusal = refusal or AccessRefused(f"Kafka at {server} {why}")
    raise refusal or StorageError(f"Kafka at {address.bootstrap} cannot be used: {silence}")


def unreachable(address: KafkaAddress, error: BaseException) -> StorageError:
    """The error for a broker that let us in and does not do what was asked."""
    if isinstance(error, NO_RIGHT):
        who = address.security.get("sasl_username") or "this client"
        return AccessRefused(
            f"Kafka at {address.bootstrap} does not let {who} do this ({_words(error)}); a log needs ACLs on the prefix "
            f"{address.topic('')} for Read, Write and DescribeConfigs of topics, Create for `agl kafka init`, Read of groups"
        )
    return StorageError(f"Kafka at {address.bootstrap} cannot be used: {_words(error)}")


async def _knock(server: str, options: dict[str, Any]) -> None:
    """Connect, prove who we are, and ask for something that only an authorized client is answered."""
    host, port, _ = get_ip_port_afi(server)
    connection: Any = await create_conn(host, port, **options)
    try:
        answer = await connection.send(MetadataRequest([]))
    except KafkaConnectionError as error:
        raise _Shut from error
    finally:
        connection.close()
    if not answer.brokers and options.get("sasl_mechanism") == "OAUTHBEARER":
        # The client takes the broker's objection to a token for a welcome; all that it asks then is answered with nothing.
        raise _Shut


async def _reason(server: str, address: KafkaAddress, options: dict[str, Any], error: BaseException) -> str | None:
    """Why the server does not let us in, and the remedy; None where it is away, as far as one can tell."""
    security = address.security
    protocol, mechanism = options["security_protocol"], options.get("sasl_mechanism", "")
    refused = _of_certificates(security.get("ssl_cafile"), security.get("ssl_certfile"), error)
    if refused is not None:
        return refused
    if isinstance(error, (SaslAuthenticationFailed, ValueError)):
        names = "sasl_token" if mechanism == "OAUTHBEARER" else f"sasl_username and {ENVIRONMENT}SASL_PASSWORD"
        who = security.get("sasl_username", "the token")
        return f"refuses the login of {who} with {mechanism}; check {names}, and that the user is known for this sasl_mechanism"
    if isinstance(error, UnsupportedSaslMechanismError):
        others = ", ".join(one for one in MECHANISMS if one != mechanism)
        return f"takes no {mechanism}; set sasl_mechanism to what its listener is set up for: {others}"
    if isinstance(error, IllegalSaslStateError):
        return f"asks for no login; set security_protocol={'SSL' if 'SSL' in protocol else 'PLAINTEXT'}, or use another port"
    if isinstance(error, _Shut):
        if mechanism == "OAUTHBEARER":
            return f"does not take the token; set a valid one in {ENVIRONMENT}SASL_TOKEN"
        if "SASL" not in protocol:
            better = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT"
            login = f"sasl_mechanism, sasl_username and {ENVIRONMENT}SASL_PASSWORD"
            return f"asks for a login; set security_protocol={better}, {login}"
        return None
    if "SSL" in protocol:
        if await _answers_in_the_clear(server):
            better = "SASL_PLAINTEXT" if "SASL" in protocol else "PLAINTEXT or SASL_PLAINTEXT"
            return f"speaks no TLS; set security_protocol={better}, or use the port that does"
    elif await _speaks_tls(server):
        better = "SASL_SSL" if "SASL" in protocol else "SSL or SASL_SSL"
        return f"speaks TLS only; set security_protocol={better}, and ssl_cafile to the authority that signed its certificate"
    return None


def _of_certificates(authority: str | None, certificate: str | None, error: BaseException) -> str | None:
    """What one side has against the certificate of the other; None where the error is about something else."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__
    if isinstance(found, ssl.SSLCertVerificationError):
        message = found.verify_message.rstrip(".")
        if "mismatch" in message:
            return f"has a certificate for another name ({message}); write the address as its certificate has it"
        trusted = f"ssl_cafile {authority} does" if authority else "the authorities of this machine do"
        return f"has a certificate that {trusted} not vouch for ({message}); set ssl_cafile to the authority that signed it"
    reason = "" if found is None else found.reason or ""
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        if certificate:
            return f"does not take the certificate {certificate}; set ssl_certfile and ssl_keyfile to one that it trusts"
        return "asks for a certificate of the client; set ssl_certfile and ssl_keyfile"
    return None


async def _answers_in_the_clear(server: str) -> bool:
    host, port, _ = get_ip_port_afi(server)
    try:
        connection: Any = await create_conn(host, port, request_timeout_ms=int(TRY_SECONDS * 1000))
    except FAILURES:
        return False
    connection.close()
    return True


async def _speaks_tls(server: str) -> bool:
    """Whether a handshake gets anywhere. Nothing is sent in it, so nobody's certificate is looked at."""
    host, port, _ = get_ip_port_afi(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), TRY_SECONDS)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def _words(error: BaseException) -> str:
    """What went wrong as far as a person cares."""
    cause = error.__cause__ if isinstance(error, _Shut) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
