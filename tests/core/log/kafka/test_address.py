"""The address of a log on Kafka: security options from the URL or a given environment, and never a secret in a text."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.errors import InvalidInput
from agentlightning.core.log.kafka import KafkaAddress
from agentlightning.core.log.open_log import open_log
from tests.cli.support import invoke

SECRET = "s3cr3t-w0rd"
SASL = "security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&sasl_username=ann"
SASL_ENV = {"AGL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "AGL_KAFKA_SASL_USERNAME": "ann", "AGL_KAFKA_SASL_PASSWORD": SECRET}


def test_servers_get_the_usual_port_and_the_prefix_names_topics_and_groups() -> None:
    address = KafkaAddress.parse("kafka://one,two:9094/dev")
    assert address.bootstrap == "one:9092,two:9094"
    assert (address.topic("control"), address.group("runners")) == ("dev.control", "dev.runners")
    assert address.client() == {
        "bootstrap_servers": ["one:9092", "two:9094"],
        "request_timeout_ms": 5000,
        "security_protocol": "PLAINTEXT",
    }


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        (f"kafka://h/p?{SASL}&sasl_password={SECRET}", None),
        (f"kafka://ann:{SECRET}@h/p?security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512", None),
        (f"kafka://h/p?{SASL}", SASL_ENV),
        (f"kafka://h/p?{SASL}&sasl_password={SECRET}", {**SASL_ENV, "AGL_KAFKA_SASL_PASSWORD": "another"}),
    ],
)
def test_sasl_comes_from_the_url_or_the_environment_and_the_url_wins(url: str, environment: dict[str, str] | None) -> None:
    made = KafkaAddress.parse(url, environment).client()
    assert isinstance(made.pop("ssl_context"), ssl.SSLContext)
    assert made == {
        "bootstrap_servers": ["h:9092"],
        "request_timeout_ms": 5000,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": SECRET,
    }


def test_plain_is_the_mechanism_where_none_is_named() -> None:
    made = KafkaAddress.parse("kafka://h/p", {**SASL_ENV, "AGL_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}).client()
    assert (made["sasl_mechanism"], made["sasl_plain_password"]) == ("PLAIN", SECRET)
    assert "ssl_context" not in made


async def test_a_token_is_handed_over_as_oauthbearer_wants_it() -> None:
    url = "kafka://h/p?security_protocol=SASL_PLAINTEXT&sasl_mechanism=OAUTHBEARER"
    made = KafkaAddress.parse(url, {"AGL_KAFKA_SASL_TOKEN": SECRET}).client()
    assert await made["sasl_oauth_token_provider"].token() == SECRET
    assert SECRET not in repr(made)
    assert "sasl_plain_username" not in made


def test_certificates_are_loaded(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate), "-days", "2",
         "-subj", "/CN=localhost", "-passout", f"pass:{SECRET}"],
        check=True, capture_output=True,
    )  # fmt: skip
    url = f"kafka://h/p?security_protocol=SSL&ssl_cafile={certificate}&ssl_certfile={certificate}&ssl_keyfile={key}"
    address = KafkaAddress.parse(url, {"AGL_KAFKA_SSL_PASSWORD": SECRET})
    context = address.client()["ssl_context"]
    assert context.cert_store_stats()["x509"] == 1
    assert SECRET not in address.url + repr(address)
    wrong = KafkaAddress.parse(url, {"AGL_KAFKA_SSL_PASSWORD": "wrong"})
    with pytest.raises(InvalidInput, match="ssl_certfile|ssl_keyfile"):
        wrong.client()


@pytest.mark.parametrize("option", ["ssl_cafile", "ssl_certfile"])
def test_a_certificate_that_is_not_there_is_one_sentence(option: str) -> None:
    with pytest.raises(InvalidInput, match="/nowhere/x.pem"):
        KafkaAddress.parse(f"kafka://h/p?security_protocol=SSL&{option}=/nowhere/x.pem").client()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka://h/p?sasl_username=ann", "has credentials and no security_protocol"),
        (f"kafka://ann:{SECRET}@h/p", "has credentials and no security_protocol"),
        (f"kafka://h/p?sasl_password={SECRET}", "has credentials and no security_protocol"),
        ("kafka://h/p?ssl_cafile=x", "security_protocol"),
        (f"kafka://h/p?security_protocol=PLAINTEXT&sasl_password={SECRET}", "sends no sasl_password"),
        ("kafka://h/p?security_protocol=SASL_PLAINTEXT&sasl_username=a&sasl_password=b&ssl_cafile=x", "uses no ssl_cafile"),
        ("kafka://h/p?security_protocol=TLS", "it takes PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        (f"kafka://h/p?{SASL}", "set AGL_KAFKA_SASL_PASSWORD in the environment"),
        (f"kafka://h/p?{SASL.replace('SCRAM-SHA-512', 'GSSAPI')}", "sasl_mechanism is 'GSSAPI'"),
        ("kafka://h/p?security_protocol=SASL_SSL&sasl_mechanism=OAUTHBEARER", "AGL_KAFKA_SASL_TOKEN"),
        ("kafka://h/p?security_protocol=SSL&ssl_keyfile=k", "ssl_keyfile needs ssl_certfile"),
        (f"kafka://h/p?sasl_pasword={SECRET}", "unknown option 'sasl_pasword'"),
        (f"kafka://ann:{SECRET}@h/", "is not the address of a log on Kafka"),
        (f"kafka://ann:{SECRET}@h:port/p?security_protocol=SASL_SSL", "is not a server"),
    ],
)
def test_a_wrong_combination_is_one_clear_sentence_without_the_secret(url: str, words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        KafkaAddress.parse(url)
    assert words in str(raised.value)
    assert SECRET not in str(raised.value)


def test_options_of_the_environment_that_do_not_fit_the_url_are_left_alone() -> None:
    """One environment serves many addresses: a local broker without a password among them."""
    address = KafkaAddress.parse("kafka://h/p?security_protocol=PLAINTEXT", SASL_ENV)
    assert "sasl_plain_password" not in address.client()


@pytest.mark.parametrize("url", [f"kafka://h/p?{SASL}&sasl_password={SECRET}", f"kafka://ann:{SECRET}@h/p?{SASL}"])
def test_no_secret_is_in_what_people_and_logs_see(url: str) -> None:
    address = KafkaAddress.parse(url, {"AGL_KAFKA_SSL_PASSWORD": SECRET})
    assert SECRET not in address.url + repr(address) + str(address)
    assert KafkaAddress.parse(address.url, {**SASL_ENV, "AGL_KAFKA_SSL_PASSWORD": SECRET}).security == address.security
    assert "sasl_username=ann" in address.url


def test_no_secret_is_in_what_a_broker_that_does_not_answer_leads_to(caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://127.0.0.1:1/p?security_protocol=SASL_PLAINTEXT&sasl_username=ann&sasl_password={SECRET}&wait_seconds=0.5"
    for readonly in (False, True):
        with pytest.raises(Exception) as raised:
            open_log(url, readonly=readonly)
        error: Any = raised.value
        assert type(error).__name__ == "StorageError"
        assert SECRET not in str(error) + repr(error) + repr(error.__cause__)
    assert SECRET not in caplog.text


def test_nothing_of_this_process_is_read_unless_it_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SASL_ENV.items():
        monkeypatch.setenv(name, value)
    assert KafkaAddress.parse("kafka://h/p").security == {}


@pytest.mark.parametrize("url", [f"kafak://ann:{SECRET}@h/p", f"file:///x?sasl_password={SECRET}"])
def test_an_address_of_no_known_form_is_repeated_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        open_log(url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("command", ["runner x:y --store", "store --log", "log tail --log", "lag --log"])
def test_a_command_repeats_an_address_that_it_cannot_use_without_its_secrets(command: str) -> None:
    for form in ("kafak", "mongodb"):
        code, out = invoke(*command.split(), f"{form}://ann:{SECRET}@h/p?sasl_password={SECRET}")
        assert code in (1, 2) and SECRET not in out
