"""A broker that asks who we are: every way in works to the end, every refusal is one sentence at once, no secret is told."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from agentlightning.core.errors import AccessRefused
from agentlightning.core.log.open_log import open_log
from agentlightning.rest.open_store import open_store
from tests.cli.support import document, documents, invoke

from .broker import NoBroker, admin, refuse, remove
from .fixtures import random_prefix
from .secured import (
    CREATE,
    GROUP,
    GUEST,
    PASSWORD,
    READ,
    READ_SETTINGS,
    TOPIC,
    USER,
    WRITE,
    WRONG,
    Secured,
    allow,
    open_secured,
    settings,
    token,
)

pytestmark = pytest.mark.kafka

SOON_SECONDS = 5.0
"""A refusal takes less; an address that says nothing waits for two minutes for a broker that is away."""
PROGRAM = """
import agentlightning as agl

def answer(task):
    return 1.0

@agl.subscriber("rollout.completed")
def heard(fact):
    print("heard", fact.rollout_id, flush=True)
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    with ExitStack() as stack:
        stack.callback(remove, folder)
        try:
            yield open_secured(stack, folder)
        except NoBroker as no:
            refuse([f"this one needs listeners of its own, so only deploy/kafka-local will do: {no}"])


@pytest.fixture
def into(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Puts security options into the environment of this process, and nothing else that begins so."""

    def put(options: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AGL_KAFKA_")]:
            monkeypatch.delenv(name)
        for name, value in options.items():
            monkeypatch.setenv(name, value)

    return put


def ways(secured: Secured) -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> (listener, environment) of everybody who is let in."""
    tls: dict[str, Any] = {"ssl_cafile": secured.files.authority}
    own: dict[str, Any] = {"ssl_certfile": secured.files.client, "ssl_keyfile": secured.files.client_key}
    return {
        "scram-512": ("SCRAM", settings("SASL_SSL", "SCRAM-SHA-512", **tls)),
        "scram-256": ("SCRAM", settings("SASL_SSL", "SCRAM-SHA-256", **tls)),
        "plain": ("PLAIN", settings("SASL_PLAINTEXT", "PLAIN")),
        "token": ("PLAIN", settings("SASL_PLAINTEXT", "OAUTHBEARER", token())),
        "tls": ("TLS", settings("SSL", **tls)),
        "mutual": ("MUTUAL", settings("SSL", **tls, **own)),
    }


def silent(text: str, secret: str = PASSWORD) -> None:
    """Fail where the secret is in a text, as it is or as an address or a program writes it."""
    for form in (secret, quote(secret, safe=""), repr(secret.encode())[2:-1]):
        assert form not in text


async def one_rollout(url: str) -> str:
    """Queued, claimed and finished; its id."""
    store: Any = await asyncio.to_thread(open_store, url, environment=os.environ)
    try:
        silent(repr(store) + repr(store.engine.log) + repr(store.engine.log.__dict__["address"]) + str(store.report()))
        made = await store.enqueue_rollout({"n": 1})
        claimed = await store.dequeue_rollout("worker")
        assert claimed.rollout_id == made.rollout_id
        await store.update_attempt(made.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        return made.rollout_id
    finally:
        await asyncio.to_thread(store.close)


@pytest.mark.parametrize("way", ["scram-512", "scram-256", "plain", "token", "tls", "mutual"])
def test_every_way_in_leads_to_a_log_and_the_clients_log_has_no_login(
    secured: Secured, into: Any, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener, options = ways(secured)[way]
    into(options)
    url = secured.url(listener, random_prefix())
    printed = [invoke("kafka", "init", "--log", url)]
    assert printed[0][0] == 0, printed[0][1]
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="aiokafka"):
        rollout_id = asyncio.run(one_rollout(url))
    assert "Metadata" in caplog.text, "the client's requests are not in this log"
    printed += [invoke("log", "tail", "--log", url), invoke("lag", "--log", url, "--json")]
    assert [code for code, _ in printed] == [0, 0, 0] and rollout_id in printed[1][1]
    silent(caplog.text + "".join(text for _, text in printed), options.get("AGL_KAFKA_SASL_TOKEN", PASSWORD))


class Started:
    """`agl` as a process whose whole output is kept."""

    def __init__(self, folder: Path, options: dict[str, str], *args: str) -> None:
        self.path = folder / f"{args[0]}-{os.urandom(3).hex()}.txt"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AGL_KAFKA_")}
        with self.path.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentlightning", *args],
                cwd=folder, env={**clean, "PYTHONUNBUFFERED": "1", **options},
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.path.read_text()

    def ended(self, seconds: float) -> int:
        return self.process.wait(seconds)


@contextmanager
def crew(folder: Path, options: dict[str, str], *commands: tuple[str, ...]) -> Iterator[list[Started]]:
    """Several of them, all gone at the end."""
    started = [Started(folder, options, *command) for command in commands]
    try:
        yield started
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
            one.process.wait()


def until(seconds: float, true: Callable[[], bool], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


async def enqueue(url: str, count: int) -> set[str]:
    """So many rollouts, finished by whoever works; their ids."""
    store: Any = await asyncio.to_thread(open_store, url, environment=os.environ)
    try:
        await store.add_resources({})
        made = {(await store.enqueue_rollout({"n": number})).rollout_id for number in range(count)}
        done = await store.wait_for_rollouts(rollout_ids=sorted(made), timeout=30)
        assert {one.status for one in done} == {"succeeded"} and len(done) == count
        return made
    finally:
        await asyncio.to_thread(store.close)


async def everything(bootstrap: str, prefix: str) -> bytes:
    """All keys, values and headers of all topics under a prefix."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    async with admin(bootstrap) as client:
        names = [name for name in await client.list_topics() if name.startswith(f"{prefix}.")]
        described: list[dict[str, Any]] = await client.describe_topics(names)
    places = [TopicPartition(one["topic"], row["partition"]) for one in described for row in one["partitions"]]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        ends = await consumer.end_offsets(places)
        consumer.assign(places)
        found = b""
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    found += repr((record.key, record.headers)).encode() + (record.value or b"")
        return found
    finally:
        await consumer.stop()


def test_stores_runners_and_subscribers_work_behind_a_login_with_tls_and_no_secret_is_told(
    secured: Secured, into: Any, tmp_path: Path
) -> None:
    listener, options = ways(secured)["scram-512"]
    into(options)
    prefix = random_prefix()
    url = secured.url(listener, prefix)
    (tmp_path / "work.py").write_text(PROGRAM)
    commands = (
        ("store", "--log", url, "--init", "--port", "0", "--json", "--log-level", "DEBUG"),
        ("runner", "work.py:answer", "--store", url, "--slots", "2", "--log-level", "DEBUG"),
        ("subscribe", "work.py:heard", "--store", url, "--group", "listeners", "--json"),
    )
    printed = [invoke("kafka", "init", "--log", url, "--json")[1]]
    with crew(tmp_path, options, *commands) as started:
        store, _, subscriber = started
        until(30, lambda: "serving" in store.text, lambda: store.text)
        made = asyncio.run(enqueue(url, 4))
        until(30, lambda: all(f"heard {one}" in subscriber.text for one in made), lambda: subscriber.text)

        def groups() -> dict[str, str]:
            return {one["group"]: one["state"] for one in document("lag", "--log", url)["groups"]}

        # Whoever enqueued was a timekeeper too, and its group deals again when it leaves.
        stable = {"listeners": "Stable", "runners": "Stable", "timekeeper": "Stable"}
        until(30, lambda: groups() == stable, lambda: str(groups()))
        for one in started:
            one.process.send_signal(signal.SIGTERM)
        assert [one.ended(30) for one in started] == [0, 0, 0]
    printed += [one.text for one in started]
    for args in (("log", "topics"), ("log", "tail", "-n", "99"), ("log", "tail", "facts", "--published"), ("log", "check"),
                 ("lag",), ("dead", "ls")):  # fmt: skip
        code, out = invoke(*args, "--log", url)
        assert code == 0, out
        printed.append(out)
    printed.append(invoke("replay", url)[1])
    assert len(documents("log", "tail", "facts", "--type", "rollout.completed", "--log", url)) == 4
    records = asyncio.run(everything(secured.cluster.bootstrap, prefix))
    assert all(one.encode() in records for one in made)
    silent("\n".join(printed) + records.decode(errors="replace"))


REFUSALS: dict[str, tuple[str, Callable[[Secured], dict[str, str]], str]] = {
    "password": ("SCRAM", lambda s: settings("SASL_SSL", "SCRAM-SHA-512", WRONG, ssl_cafile=s.files.authority),
                 f"refuses the login of {USER} with SCRAM-SHA-512; check sasl_username and AGL_KAFKA_SASL_PASSWORD"),
    "plain password": ("PLAIN", lambda _: settings("SASL_PLAINTEXT", "PLAIN", WRONG), f"refuses the login of {USER}"),
    "token": ("PLAIN", lambda _: settings("SASL_PLAINTEXT", "OAUTHBEARER", WRONG), "a valid one in AGL_KAFKA_SASL_TOKEN"),
    "old token": ("PLAIN", lambda _: settings("SASL_PLAINTEXT", "OAUTHBEARER", token(-60)), "does not take the token"),
    "authority": ("SCRAM", lambda s: settings("SASL_SSL", "SCRAM-SHA-512", ssl_cafile=s.files.stranger),
                  "set ssl_cafile to the authority that signed it"),
    "no authority": ("TLS", lambda _: settings("SSL"), "the authorities of this machine do not vouch for"),
    "nothing, tls": ("SCRAM", lambda _: {}, "speaks TLS only; set security_protocol=SSL or SASL_SSL"),
    "nothing": ("PLAIN", lambda _: {}, "asks for a login; set security_protocol=SASL_PLAINTEXT"),
    "no login": ("SCRAM", lambda s: settings("SSL", ssl_cafile=s.files.authority), "set security_protocol=SASL_SSL"),
    "no certificate": ("MUTUAL", lambda s: settings("SSL", ssl_cafile=s.files.authority),
                       "asks for a certificate of the client; set ssl_certfile and ssl_keyfile"),
    "mechanism": ("SCRAM", lambda s: settings("SASL_SSL", "PLAIN", ssl_cafile=s.files.authority), "set sasl_mechanism to"),
    "login too much": ("TLS", lambda s: settings("SASL_SSL", "PLAIN", ssl_cafile=s.files.authority), "asks for no login"),
    "tls too much": ("PLAIN", lambda s: settings("SASL_SSL", "PLAIN", ssl_cafile=s.files.authority), "speaks no TLS"),
}  # fmt: skip
"""Case -> (listener, environment, words of the sentence)."""


@pytest.mark.parametrize("case", list(REFUSALS))
def test_a_refusal_is_one_sentence_at_once_with_its_remedy(
    secured: Secured, into: Any, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener, options, words = REFUSALS[case]
    into(options(secured))
    url = secured.url(listener, "dev")
    began = time.monotonic()
    code, out = invoke("kafka", "init", "--log", url)
    assert (code, out.count("\n")) == (1, 1) and words in out
    for readonly in (False, True):
        with pytest.raises(AccessRefused) as raised:
            open_log(url, readonly=readonly, environment=os.environ)
        assert words in str(raised.value)
        out += str(raised.value) + repr(raised.value) + repr(raised.value.__context__)
    assert time.monotonic() - began < SOON_SECONDS
    for secret in (PASSWORD, WRONG):
        silent(out + caplog.text, secret)


def test_a_certificate_for_another_name_is_said_to_be_one(secured: Secured, into: Any) -> None:
    into(ways(secured)["tls"][1])
    code, out = invoke("log", "tail", "--log", secured.url("TLS", "dev", host="localhost"))
    assert code == 1 and "certificate for another name" in out and "'localhost'" in out


def test_the_commands_that_go_on_running_do_not_wait_for_a_broker_that_refuses_them(secured: Secured, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(PROGRAM)
    options = settings("SASL_SSL", "SCRAM-SHA-512", WRONG, ssl_cafile=secured.files.authority)
    url = secured.url("SCRAM", "dev")
    commands = (
        ("store", "--log", url, "--port", "0", "--json"),
        ("runner", "work.py:answer", "--store", url),
        ("runner", "work.py:answer", "--store", url, "-n", "2"),
        ("subscribe", "work.py:heard", "--store", url),
    )
    with crew(tmp_path, options, *commands) as started:
        codes = [one.ended(20) for one in started]
    assert codes == [1, 1, 1, 1]
    for one in started:
        assert f"refuses the login of {USER}" in one.text and "Traceback" not in one.text
        assert one.text.count("\n") in ((1, 2) if one is started[2] else (1,)), "one line for each process that began"
        silent(one.text, WRONG)


def test_who_lacks_rights_is_told_which_and_with_them_everything_works(secured: Secured, into: Any) -> None:
    into({**ways(secured)["scram-256"][1], "AGL_KAFKA_SASL_USERNAME": GUEST})
    prefix = random_prefix()
    url = secured.url("SCRAM", prefix)

    def give(*rights: tuple[int, int]) -> None:
        asyncio.run(allow(secured.cluster.bootstrap, GUEST, f"{prefix}.", rights))

    for right in ((), ((TOPIC, CREATE),), ((TOPIC, READ), (TOPIC, WRITE))):
        give(*right)
        code, out = invoke("kafka", "init", "--log", url)
        assert (code, out.count("\n")) == (1, 1), out
        assert f"does not let {GUEST} do this" in out and f"ACLs on the prefix {prefix}. for Read, Write" in out
    give((TOPIC, READ_SETTINGS))
    until(20, lambda: invoke("kafka", "init", "--log", url)[0] == 0, lambda: "a broker applies rights a moment later")
    with open_log(url, environment=os.environ) as log, pytest.raises(AccessRefused, match="Read of groups"):
        log.join("listeners", ["facts"], "one")
    code, out = invoke("lag", "--log", url)
    assert code == 1 and f"does not let {GUEST} do this" in out and "Read of groups" in out, out
    give((GROUP, READ))
    until(20, lambda: "No group reads" in invoke("lag", "--log", url)[1], lambda: invoke("lag", "--log", url)[1])
    assert asyncio.run(one_rollout(url)) in invoke("log", "tail", "--log", url)[1]
