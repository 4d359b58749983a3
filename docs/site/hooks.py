"""Generates the pages of the reference when the site is built, so that none of them is kept in the repository.

The Python API is a list of names for mkdocstrings; the commands come from click, the HTTP API from its OpenAPI description,
events and topics from core/, span attributes from core/model/semconv.py. deploy/README.md and examples/README.md stay where
they are and become pages. A link that leaves docs/ becomes the path it names.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import click
import msgspec
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from agentlightning.cli import app
from agentlightning.core.events import codec, fact, payload, run_events, schema
from agentlightning.core.log import topics
from agentlightning.core.model import semconv
from agentlightning.rest.api import openapi

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
IMPORTED = {"how-to/run-in-docker-and-kubernetes.md": "deploy/README.md", "tutorials/examples.md": "examples/README.md"}
"""Page of the site -> the file of the repository that it shows."""
API = {
    "agents": ("Agents and emitters", ("runners.agent", "runners.emit", "core.model.prompt_format")),
    "resources": ("Resources", ("core.model.resources",)),
    "training": ("Trainer, algorithms and adapters", ("algorithms",)),
    "store": ("The store", ("core.model.store_interface", "projections", "rest")),
    "rollouts": ("Rollouts, attempts and workers", ("core.model",)),
    "spans": ("Spans", ("core.model.span", "core.spans")),
    "runners": ("Runners and tracers", ("runners",)),
    "errors": ("Errors and logging", ("core",)),
    "older-releases": ("Names of older releases", ("compat",)),
}
"""Page of the Python API -> its title and the modules whose public names it has; the longest prefix of a module wins."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the package importable for mkdocstrings, and complete the navigation."""
    link_package(ROOT / "build" / "docs-import" / "agentlightning")
    docs = Path(config.docs_dir)
    decisions = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("decisions/*.md"))
    section(config, "Explanation").append({"Decisions": decisions})
    section(config, "Reference").insert(0, {"Python API": [f"reference/python-api/{name}.md" for name in API]})
    section(config, "Tutorials").append("tutorials/examples.md")
    return config


def section(config: MkDocsConfig, title: str) -> list[Any]:
    """The entries of one section of the navigation."""
    return next(entry[title] for entry in config.nav or [] if isinstance(entry, dict) and title in entry)


def link_package(folder: Path) -> None:
    """The repository root is the package, so a folder with links to the rooms has the package's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in [ROOT / "__init__.py", *(path.parent for path in ROOT.glob("*/__init__.py"))]:
        if source.name != "tests":
            with suppress(FileExistsError):  # by a build before, or one that runs at the same time
                os.symlink(source, folder / source.name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/command-line.md": commands_page,
        "reference/rest-api.md": rest_page,
        "reference/events-and-topics.md": events_page,
        "reference/span-attributes.md": span_attributes_page,
    }
    for uri, make in pages.items():
        files.append(File.generated(config, uri, content="\n".join(make())))
    for uri, content in api_pages().items():
        files.append(File.generated(config, uri, content=content))
    for uri, source in IMPORTED.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between pages are kept; those that leave docs/ become the path of the file in the repository."""
    uri = page.file.src_uri
    home = (ROOT / IMPORTED[uri] if uri in IMPORTED else Path(config.docs_dir) / uri).parent
    shown = {source: target for target, source in IMPORTED.items()}

    def changed(match: re.Match[str]) -> str:
        target, anchor = match.group(1), match.group(2) or ""
        path = (home / target).resolve()
        if "://" in target or not path.exists():
            return match.group(0)
        inside = path.relative_to(ROOT).as_posix()
        page_of_site = inside.removeprefix("docs/") if inside.startswith("docs/") and path.is_file() else ""
        inside = shown.get(inside, page_of_site)
        if not inside:
            return f"](#{REPOSITORY}{path.relative_to(ROOT).as_posix()})"
        return f"]({os.path.relpath(inside, os.path.dirname(uri) or '.')}{anchor})"

    text = LINK.sub(changed, markdown)
    return re.sub(rf"\[([^\]]+)\]\(#{REPOSITORY}([^)]+)\)", r"\1 (`\2`)", text)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings write :meth:`name` as Sphinx reads it; the name alone is shown."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", content)


REPOSITORY = "repository:"
"""Marks, between two substitutions, a link to a file that is not part of the site."""


def api_pages() -> dict[str, str]:
    """One page for each group of public names, which mkdocstrings fills from their docstrings."""
    pages: dict[str, list[str]] = {name: [f"# {title}", ""] for name, (title, _) in API.items()}
    for module, name in public_names():
        fits = [
            (len(prefix), page) for page, (_, modules) in API.items() for prefix in modules if module.startswith(prefix)
        ]
        pages[max(fits)[1]] += [f"::: agentlightning.{module}.{name}", ""]
    return {f"reference/python-api/{name}.md": "\n".join(lines) for name, lines in pages.items()}


def public_names() -> Iterator[tuple[str, str]]:
    """Module and name of everything that `import agentlightning` offers, from its block for type checkers."""
    for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def commands_page() -> Iterator[str]:
    """`agl` and its sub-commands, from click."""
    yield "# Command line\n"
    yield from command_section(app.agl, click.Context(app.agl, info_name="agl"))


def command_section(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## `{context.command_path}`\n\n{inspect.cleandoc(command.help or command.short_help or '')}\n"
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    options = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    yield from table(("option", "meaning"), ((f"`{name}`", text) for name, text in options))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name
            if not found.hidden:
                yield from command_section(found, click.Context(found, parent=context, info_name=name))


def rest_page() -> Iterator[str]:
    """The calls of the HTTP API, from the OpenAPI document that a store serves."""
    document = openapi.describe()
    schemas = document["components"]["schemas"]
    yield f"# REST API\n\n{document['info']['description']}\n"
    yield "A store serves the OpenAPI document of this page at `GET /v1/agl/openapi.json`.\n\n## Errors\n"
    refusals = document["components"]["responses"].items()
    yield from table(("status", "meaning"), ((status, answer["description"]) for status, answer in refusals))
    for path, operations in sorted(document["paths"].items()):
        for verb, operation in operations.items():
            yield f"## `{verb.upper()} {path}`\n\n{operation['summary']}"
            yield "Deprecated.\n" if operation.get("deprecated") else ""
            rows = [
                (f"`{one['name']}`", one["in"], type_of(one["schema"]), "yes" if one["required"] else "no")
                for one in operation.get("parameters", [])
            ]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            model = schemas.get(body.get("$ref", "").rpartition("/")[2], body)
            required = model.get("required", [])
            for name, schema_ in model.get("properties", {}).items():
                rows.append((f"`{name}`", "body", type_of(schema_), "yes" if name in required else "no"))
            yield from table(("parameter", "in", "type", "required"), rows)
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    kinds = [type_of(content["schema"]) for content in answer.get("content", {}).values()]
                    yield f"Answers {status}: {', '.join(sorted(set(kinds))) or 'nothing'}.\n"
    yield "## Models\n"
    for name, model in sorted(schemas.items()):
        if model.get("properties"):
            yield f"### {name}\n\n{model.get('description', '')}\n"
            rows = [(f"`{field}`", type_of(one)) for field, one in model["properties"].items()]
            yield from table(("field", "type"), rows)


def type_of(schema_: dict[str, Any]) -> str:
    """A JSON schema as a few words."""
    if "$ref" in schema_:
        return schema_["$ref"].rpartition("/")[2]
    if "anyOf" in schema_ or "oneOf" in schema_:
        return " or ".join(dict.fromkeys(type_of(one) for one in schema_.get("anyOf", schema_.get("oneOf", []))))
    if "enum" in schema_:
        return ", ".join(f"`{value}`" for value in schema_["enum"])
    if schema_.get("type") == "array":
        return f"list of {type_of(schema_.get('items', {}))}"
    return str(schema_.get("type", schema_.get("const", "any JSON")))


def events_page() -> Iterator[str]:
    """The topics from core/log/topics.py, the events from the structs of core/events/."""
    yield f"# Events and topics\n\n## Topics\n\n{inspect.getdoc(topics)}\n"
    kept = topics.TOPICS.values()
    words = {True: "yes", False: "no"}
    rows = ((f"`{one.name}`", words[one.compacted], words[one.durable], words[one.derived]) for one in kept)
    yield from table(("topic", "newest record of a key only", "survives a power cut", "computed from `control`"), rows)
    for title, module in (("Form of a record", codec), ("User data", payload)):
        yield f"## {title}\n\n{inspect.getdoc(module)}\n"
    for title, module in (("Events of the control topic", schema), ("Events of a run", run_events), ("Facts", fact)):
        yield f"## {title}\n\n{inspect.getdoc(module)}\n"
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, msgspec.Struct) and one.__module__ == module.__name__:
                tag = one.__struct_config__.tag
                yield f"### {f'`{tag}`' if isinstance(tag, str) else one.__name__}\n\n{inspect.getdoc(one)}\n"
                fields = msgspec.structs.fields(one)
                yield from table(
                    ("field", "type"), ((f"`{field.name}`", f"`{annotation(one, field.name)}`") for field in fields)
                )


def annotation(owner: type, field: str) -> str:
    """The type of a field as the source has it."""
    return next(
        vars(base)["__annotations__"][field] for base in owner.__mro__ if field in vars(base).get("__annotations__", {})
    )


def span_attributes_page() -> Iterator[str]:
    """Names of spans and attributes, from core/model/semconv.py."""
    yield f"# Span attributes\n\n{inspect.getdoc(semconv)}\n\n## Names of spans\n"
    names = [(name, value) for name, value in vars(semconv).items() if name.startswith("AGL_")]
    yield from table(("constant", "name"), ((f"`{name}`", f"`{value}`") for name, value in names))
    for one in vars(semconv).values():
        if isinstance(one, type) and issubclass(one, Enum) and one is not Enum:
            yield f"## {one.__name__}\n\n{inspect.getdoc(one)}\n"
            yield from table(("member", "value"), ((f"`{member.name}`", f"`{member.value}`") for member in one))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A table of Markdown; nothing where there are no rows."""
    cells = [[" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    if cells:
        yield "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)) + "\n"
