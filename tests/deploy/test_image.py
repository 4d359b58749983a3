"""The image and compose.yaml: what they copy and call exists, and the programs in the image do what they say."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from kafka_local import kafka_version

from agentlightning.core.log.kafka.address import ENVIRONMENT, SECURITY

from ..cli.support import running
from ..environments import core_lock
from ..sources import ROOMS, ROOT, ROOT_FILES
from ..system.kafka.broker import container_settings
from .manifests import DEPLOY, Container, commands_of, compose, containers, parse, services

DOCKERFILE = DEPLOY / "Dockerfile"
IMAGE = DEPLOY / "image"
# The Compose Specification's names, those that are of use here; a typing error in one is silent in no other way.
TOP = {"name", "services", "volumes", "networks", "configs", "secrets"}
SERVICE = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "ports",
    "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
HEALTHCHECK = {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
DURATION = re.compile(r"(\d+(us|ms|s|m|h))+")


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of every instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    rests = [shlex.split(rest) for keyword, rest in instructions() if keyword == "COPY"]
    return [source for rest in rests if not rest[0].startswith("--from=") for source in rest[:-1]]


def ignored(path: str) -> bool:
    """Whether Dockerfile.dockerignore keeps a path out of the build; the last rule that fits counts."""
    out = False
    for rule in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n"):
        pattern = rule.strip().removeprefix("!")
        if pattern and not pattern.startswith("#"):
            parents = [path, *(str(parent) for parent in Path(path).parents)]
            if any(fnmatch.fnmatch(one, pattern) for one in parents):
                out = not rule.startswith("!")
    return out


def test_the_image_is_made_of_files_that_are_there() -> None:
    assert [source for source in copied() if not (ROOT / source).exists() or ignored(source)] == []
    needed = ("pyproject.toml", "README.md", "LICENSE", "py.typed", "constraints.txt")
    assert set(copied()) >= {*ROOMS, *ROOT_FILES, *needed}
    private = [".env", ".git/config", ".agl/log.db", "deploy/.env", "tests/x.py"]
    assert [path for path in private if not ignored(path)] == []


def test_the_image_is_not_root_and_says_how_it_is() -> None:
    keywords = dict(instructions())
    assert [rest for keyword, rest in instructions() if keyword == "FROM"] == ["python:3.12-slim AS build", "python:3.12-slim"]
    assert keywords["USER"] == "10001:10001"
    assert keywords["ENTRYPOINT"] == '["agl"]'
    assert "/opt/agl/health.py" in keywords["HEALTHCHECK"]
    installs = [part for _, rest in instructions() for part in rest.split("&&") if "pip install" in part]
    assert installs and all("--require-hashes" in part or "--no-index" in part for part in installs)
    names = [pair.split("=")[0] for keyword, rest in instructions() if keyword in ("ENV", "ARG") for pair in rest.split()]
    assert [name for name in names if re.search("TOKEN|PASSWORD|SECRET|KEY", name)] == []


@pytest.mark.parametrize("place", [*services(), *containers()], ids=lambda place: place.where)
def test_every_container_calls_agl_with_options_that_it_has(place: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    context = parse(place.arguments)
    assert context.command.name in ("init", "store", "runner")
    if context.command.name == "store":
        assert context.params["host"] == "0.0.0.0" and context.params["token"] == "given"
    if context.command.name == "runner":
        file, _, _ = context.params["agent"].partition(":")
        assert any(target.endswith(file.removeprefix("/agents/")) for target in copied()) and file.startswith("/agents/")


def test_a_container_without_its_store_token_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the check above means something: the token comes from the environment of the container."""
    monkeypatch.delenv("AGL_TOKEN", raising=False)
    store = next(one for one in services() if one.arguments[0] == "store")
    assert parse(store.arguments).params["token"] is None


@pytest.mark.parametrize("arguments", [["store", "--porto", "1"], ["store", "--port", "x"], ["rnner"], ["runner"]])
def test_a_wrong_command_is_seen(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(arguments)


@pytest.mark.parametrize("place", [*services(), *containers()], ids=lambda place: place.where)
def test_every_variable_is_one_that_the_code_reads(place: Container) -> None:
    known = {"AGL_TOKEN", *(ENVIRONMENT + option.upper() for option in SECURITY)}
    # KAFKA_URL is no setting of ours: Kubernetes puts it into the arguments.
    assert set(place.environment) - known <= {"KAFKA_URL"}


def test_every_command_of_the_readme_exists() -> None:
    found = list(commands_of(DEPLOY / "README.md"))
    for line, arguments in found:
        try:
            parse(arguments)
        except click.MissingParameter:
            # A command that a sentence mentions is named, not spelt out.
            assert line in ("agl kafka init", "agl lag", "agl store", "agl log check"), line
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")
    assert len(found) >= 5


def test_compose_has_the_names_of_its_specification() -> None:
    document = compose()
    assert {name for name in document if not name.startswith("x-")} <= TOP
    for name, service in document["services"].items():
        assert set(service) <= SERVICE, name
        check = service.get("healthcheck", {})
        assert set(check) <= HEALTHCHECK
        for key in ("interval", "timeout", "start_period"):
            assert DURATION.fullmatch(check.get(key, "1s")), (name, key)
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS and set(how) == {"condition"}
            healthy = document["services"][other].get("healthcheck", {"disable": True})
            assert how["condition"] != "service_healthy" or "test" in healthy
        for volume in service.get("volumes", []):
            source, colon, _ = volume.partition(":")
            assert not colon or source in document["volumes"]
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert context == ROOT and context / service["build"]["dockerfile"] == DOCKERFILE


def test_compose_opens_nothing_to_other_machines() -> None:
    ports: list[Any] = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4747:4747"]
    assert compose()["services"]["store"]["environment"]["AGL_TOKEN"].startswith("${AGL_TOKEN:?")


def test_one_release_of_kafka_everywhere_and_one_way_to_start_it() -> None:
    kafka = compose()["services"]["kafka"]
    assert kafka["image"] == f"apache/kafka:{kafka_version()}"
    assert container_settings("kafka:9092").items() <= kafka["environment"].items()


def test_the_lock_of_the_image_is_part_of_the_lock(tmp_path: Path) -> None:
    names = sorted(set(re.findall(r"^([A-Za-z0-9][\w.-]*)", core_lock(), re.MULTILINE)))
    command = [sys.executable, str(IMAGE / "locked.py"), str(ROOT / "constraints.txt")]
    run = subprocess.run([*command, *names], capture_output=True, text=True, check=True)
    whole = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    rows = re.split(r"\n(?=[a-z0-9])", run.stdout.strip())
    assert {re.split(r"[=\[]", row)[0] for row in rows} == set(names)
    assert all(row in whole and "--hash=sha256:" in row for row in rows)
    unknown = subprocess.run([*command, "no-such-package"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 1 and unknown.stderr.strip().endswith("does not lock no-such-package")


def test_the_example_runs_and_health_tells_a_store_that_answers(tmp_path: Path) -> None:
    environment = {**os.environ, "AGL_TOKEN": "a-token"}

    def program(name: str, *arguments: str, token: str = "a-token") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(IMAGE / name), *arguments]
        return subprocess.run(command, env={**environment, "AGL_TOKEN": token}, capture_output=True, text=True, check=False)

    with running("store", "--port", "0", cwd=tmp_path, env={"AGL_TOKEN": "a-token"}) as store:
        address = re.search(r"http://\S+:(\d+)", store.wait_for(store.err, "Serving"))
        assert address is not None
        port = address.group(1)
        assert program("health.py", port).returncode == 0
        refused = program("health.py", port, token="another")
        assert refused.returncode == 1 and "401" in refused.stderr
        agent = f"{IMAGE / 'example_agent.py'}:agent"
        with running("runner", agent, "--store", address.group(0), cwd=tmp_path, env={"AGL_TOKEN": "a-token"}):
            done = program("example_agent.py", address.group(0))
        assert done.returncode == 0, done.stderr
        assert "20 of 20 are over" in done.stdout and done.stdout.count("reward 1.0") == 10
    silent = program("health.py", port)
    assert silent.returncode == 1 and len(silent.stderr.splitlines()) == 1
