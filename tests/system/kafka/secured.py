"""A broker with a door for each way of proving who one is, and the certificates and addresses to go through them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka_local import Cluster

from .broker import NoBroker, admin, open_cluster

USER = "ann"
PASSWORD = "s3cr3t-w0rd/%+@&ann"
"""With characters that an address has to write otherwise."""
GUEST = "bob"
"""Known to the SCRAM door under the same password, and without any right until `allow` gives it some."""
WRONG = "wr0ng-w0rd"
DOORS = {"SCRAM": "SASL_SSL", "PLAIN": "SASL_PLAINTEXT", "TLS": "SSL", "MUTUAL": "SSL"}
"""Listener -> protocol. SCRAM takes both SCRAM mechanisms, PLAIN also OAUTHBEARER, MUTUAL asks for a certificate."""
_MODULES = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Certificates:
    """PEM files of two authorities that know nothing of each other; the first signed `server` and `client`."""

    authority: Path
    stranger: Path
    server: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Made anew for each run and gone with the folder; valid for a day, for 127.0.0.1 and no name. Raises NoBroker."""
    if shutil.which("openssl") is None:
        raise NoBroker("certificates are made by `openssl`, which is not on PATH")
    folder.mkdir(parents=True)
    for name in ("authority", "stranger"):
        _openssl(folder, *_new_key(name), "-x509", "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")
    _signed(folder, "server", "subjectAltName=IP:127.0.0.1")
    _signed(folder, "client", f"subjectAltName=DNS:{USER}")
    # Kafka reads key and chain from one file.
    both = (folder / "server.key").read_text() + (folder / "server.pem").read_text()
    (folder / "server.both.pem").write_text(both)
    return Certificates(
        authority=folder / "authority.pem",
        stranger=folder / "stranger.pem",
        server=folder / "server.both.pem",
        client=folder / "client.pem",
        client_key=folder / "client.key",
    )


def _new_key(name: str) -> list[str]:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]
    return ["req", *key, "-out", f"{name}.pem", "-days", "1"]


def _signed(folder: Path, name: str, extension: str) -> None:
    signer = ["-CA", "authority.pem", "-CAkey", "authority.key"]
    _openssl(folder, *_new_key(name), "-x509", *signer, "-subj", f"/CN={name}", "-addext", extension)


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoBroker(f"openssl made no certificate: {done.stderr.strip()[-300:]}")


def properties(files: Certificates) -> dict[str, object]:
    """What the doors ask of those who come in."""
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": files.server,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": files.authority,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER};User:CN=client",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.scram.scram-sha-256.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
        "listener.name.plain.sasl.enabled.mechanisms": "PLAIN,OAUTHBEARER",
        "listener.name.plain.plain.sasl.jaas.config":
            f'{_MODULES}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        "listener.name.plain.oauthbearer.sasl.jaas.config":
            f'{_MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
    }  # fmt: skip


@dataclass(frozen=True)
class Secured:
    """The broker that runs, and what gets in."""

    cluster: Cluster
    files: Certificates

    def url(self, door: str, prefix: str, host: str = "127.0.0.1", **options: str) -> str:
        """The address of a log behind a door; nothing of it is secret."""
        port = self.cluster.nodes[1].listeners[door].rpartition(":")[2]
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"kafka://{host}:{port}/{prefix}" + (f"?{query}" if query else "")


def open_secured(stack: ExitStack, folder: Path) -> Secured:
    """Start it; `stack` stops it. Raises NoBroker."""
    files = make_certificates(folder / "certificates")
    users = [f"SCRAM-SHA-{bits}=[name={name},password={PASSWORD}]" for bits in (256, 512) for name in (USER, GUEST)]
    cluster = open_cluster(
        stack,
        folder / "broker",
        brokers=1,
        listeners=DOORS,
        properties=properties(files),
        format_options=[word for user in users for word in ("--add-scram", user)],
    )
    return Secured(cluster, files)


TOPIC, GROUP = 2, 3
READ, WRITE, CREATE, READ_SETTINGS = 3, 4, 5, 10
"""Kafka's numbers of resources and operations; READ_SETTINGS is DESCRIBE_CONFIGS."""


async def allow(bootstrap: str, user: str, prefix: str, rights: Iterable[tuple[int, int]]) -> None:
    """Give a user rights, (resource, operation) each, on all that begins with a prefix."""
    from aiokafka.protocol.admin import CreateAclsRequest

    async with admin(bootstrap) as client:
        for resource, operation in rights:
            request = CreateAclsRequest(resource, prefix, 4, f"User:{user}", "*", operation, 3)
            answer: Any = await client._send_request(request)
            assert [row[0] for row in answer.creation_responses] == [0], answer


def settings(protocol: str, mechanism: str = "", password: str = PASSWORD, **more: object) -> dict[str, str]:
    """Security options of a process's environment."""
    made: dict[str, object] = {"security_protocol": protocol, **more}
    if mechanism == "OAUTHBEARER":
        made |= {"sasl_mechanism": mechanism, "sasl_token": password}
    elif mechanism:
        made |= {"sasl_mechanism": mechanism, "sasl_username": USER, "sasl_password": password}
    return environment(made)


def environment(options: Mapping[str, object]) -> dict[str, str]:
    """AGL_KAFKA_ and so on."""
    return {f"AGL_KAFKA_{name.upper()}": str(value) for name, value in options.items()}


def token(seconds: float = 600.0) -> str:
    """A JWT without a signature, valid for so long; a broker takes it that is set up as Kafka comes."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": USER, "iat": now - 5, "exp": now + seconds})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
