"""The site of the documentation builds without a warning, and its reference is complete."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import agentlightning as agl
from agentlightning.cli.app import COMMANDS
from agentlightning.core.events import run_events, schema
from agentlightning.core.log.topics import TOPICS
from agentlightning.rest.api.routes import ROUTES

from ..sources import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed (make setup installs it)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(site: Path, *pages: str) -> str:
    """What a reader sees of the pages, without tags."""
    found = [path.read_text(encoding="utf-8") for page in pages for path in sorted(site.glob(page))]
    assert found
    return html.unescape(re.sub(r"<[^>]+>", "", "\n".join(found)))


def test_every_public_name_has_its_entry(site: Path) -> None:
    headings = {
        part.rpartition(".")[2]
        for path in (site / "reference" / "python-api").glob("*.html")
        for part in re.findall(r'<h3 id="([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    assert {name for name in agl.__all__ if not name.startswith("__")} - headings == set()


def test_every_command_route_event_and_topic_is_in_the_reference(site: Path) -> None:
    commands = text_of(site, "reference/command-line.html")
    assert [name for name in COMMANDS if f"agl {name}" not in commands] == []
    routes = text_of(site, "reference/rest-api.html")
    assert [route for route in ROUTES if f"{route.verb.upper()} {route.path}" not in routes] == []
    events = text_of(site, "reference/events-and-topics.html")
    structs = [one for module in (schema, run_events) for one in vars(module).values() if isinstance(one, type)]
    tags = [one.__struct_config__.tag for one in structs if issubclass(one, msgspec.Struct)]
    wanted = [tag for tag in tags if isinstance(tag, str)] + list(TOPICS) + ["$bytes", "$float"]
    assert len(wanted) > 20 and [name for name in wanted if name not in events] == []


def test_a_link_that_leaves_the_documentation_names_the_file(site: Path) -> None:
    page = text_of(site, "how-to/run-in-docker-and-kubernetes.html")
    assert "deploy/compose.yaml" in page and "](" not in re.sub(r"(?s)<code>.*?</code>", "", page)
