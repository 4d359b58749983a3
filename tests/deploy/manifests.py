"""What the files of deploy/ say, read for the tests: documents, containers, and the `agl` commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from agentlightning.cli.app import agl

from ..sources import ROOT

DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
POD_KINDS = ("Deployment", "Job")


@dataclass
class Container:
    """One container or service: the arguments of `agl`, and the names and plain values of its environment."""

    where: str
    arguments: list[str]
    environment: dict[str, str]
    spec: dict[str, Any] = field(repr=False)


def load(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file. Keys that stand twice are an error: the parser would take the last in silence."""
    return [document for document in yaml.load_all(path.read_text(encoding="utf-8"), Strict) if document]


class Strict(yaml.SafeLoader):
    """Refuses a mapping with the same key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key stands twice {node.start_mark}"
        return super().construct_mapping(node, deep)


def compose() -> dict[str, Any]:
    """deploy/compose.yaml with its anchors resolved."""
    return load(DEPLOY / "compose.yaml")[0]


def resources() -> list[dict[str, Any]]:
    """Every object that `kubectl apply -k deploy/k8s` makes, before names of images are replaced."""
    kustomization = load(K8S / "kustomization.yaml")[0]
    return [document for name in kustomization["resources"] for document in load(K8S / name)]


def by_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in resources() if document["kind"] == kind]


def services() -> Iterator[Container]:
    """The services of compose.yaml that run our image, their variables given as a user would."""
    for name, spec in compose()["services"].items():
        if "build" in spec:
            values = {key: re.sub(r"\$\{(\w+):\?[^}]*\}", "given", value) for key, value in spec.get("environment", {}).items()}
            yield Container(f"compose.yaml {name}", spec["command"], values, spec)


def containers() -> Iterator[Container]:
    """The containers of deploy/k8s, their configuration filled in and their secrets given."""
    data = by_kind("ConfigMap")[0]["data"]
    for document in resources():
        if document["kind"] in POD_KINDS:
            for spec in document["spec"]["template"]["spec"]["containers"]:
                values = dict(data) if "envFrom" in spec else {}
                values.update({one["name"]: one.get("value", "given") for one in spec.get("env", [])})
                arguments = [_filled(one, values) for one in spec["args"]]
                yield Container(f"k8s {document['metadata']['name']}", arguments, values, spec)


def _filled(text: str, values: dict[str, str]) -> str:
    """As Kubernetes does it: `$(NAME)` stands for the variable."""
    return re.sub(r"\$\((\w+)\)", lambda match: values[match.group(1)], text)


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every `agl ...` in the code blocks and code spans of a page of Markdown, as it stands and as arguments."""
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    blocks = fenced.findall(text)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(agl [^`\n]+)`", fenced.sub("", text))
    for line in lines:
        if line.startswith("agl "):
            yield line, shlex.split(line, comments=True)[1:]


def parse(arguments: list[str]) -> click.Context:
    """The context of the command that `arguments` call, every option checked; nothing runs. Raises click's errors."""
    command: click.Command = agl
    context = click.Context(agl, info_name="agl")
    rest = list(arguments)
    while isinstance(command, click.Group):
        if not rest:
            return context  # a group that is named, such as `agl log`
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None and name is not None
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name, rest, parent=context)
