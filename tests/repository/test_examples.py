"""The examples that users copy from, run as they are, against a model of three rules that likes good prompts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..cli.support import document, invoke, running
from ..deploy.manifests import parse
from ..openai_stub import Answer, Stub, openai_stub
from ..sources import ROOT

EXAMPLES = ROOT / "examples"
Run = Callable[..., str]


def answer(body: dict[str, Any]) -> str | dict[str, Any]:
    """As models do: chatty unless told not to be, and sure of itself unless told to look it up."""
    text = str(body["messages"][-1]["content"])
    if body.get("tools"):
        return shop(body["messages"])
    if "report" in text:
        return re.findall(r"\d+ [a-z]+", text)[-1] if "every quantity" in text else "It was a good day."
    if "Notes:" in text:
        number = re.findall(r"\d+", text.rpartition("Notes:")[2])
        return (number or ["I do not know"])[-1] if "number only" in text else f"The answer is {number}."
    kind = "question" if text.endswith("?") else "praise" if re.search("wonderful|Best", text) else "complaint"
    return kind if "exactly one" in text else f"This is a {kind}."


def shop(messages: list[dict[str, Any]]) -> str | dict[str, Any]:
    """Calls the tool where the instruction says so, and multiplies."""
    if "with the tool" not in messages[0]["content"]:
        return "About 70 euros."
    count, item = re.findall(r"(\d+|a) (lamp|chair|table)", messages[1]["content"])[0]
    if messages[-1]["role"] == "tool":
        return str(int(messages[-1]["content"]) * (1 if count == "a" else int(count)))
    call = {"name": "look_up_price", "arguments": f'{{"item": "{item}"}}'}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
    }


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    said: Answer = answer
    with openai_stub(answer=said) as server:
        yield server


@pytest.fixture
def run(stub: Stub, tmp_path: Path) -> Run:
    """Runs an example in a folder of its own; what it said on both outputs, after it ended well."""

    def run(name: str, *arguments: str, code: int = 0, **env: str) -> str:
        given = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": stub.base_url, **env}
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            cwd=tmp_path,
            env={name: value for name, value in {**os.environ, **given}.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code and "Traceback" not in text, text
        return text

    return run


def check_hints(text: str, log: Path) -> None:
    """The commands that the last line names are there and find what happened."""
    [line] = [line for line in text.splitlines() if line.startswith("The log is in ")]
    commands = [part.strip() for part in line.partition(": ")[2].split(";")]
    assert [command.split()[:2] for command in commands] == [["agl", "ps"], ["agl", "show"]]
    for command in commands:
        parse(command.split()[1:])
    code, shown = invoke("show", commands[1].split()[2], "--log", str(log))
    assert code == 0, shown
    assert "succeeded" in shown


def test_the_prompt_search_finds_the_prompt_that_says_what_is_wanted(run: Run, tmp_path: Path) -> None:
    text = run("prompt_search.py")
    means = re.findall(r"\[search\] +([\d.]+)  ", text)
    assert means == ["0.00", "0.00", "0.00", "1.00"]
    assert "validation tasks: 1.0" in text
    assert "Best prompt_template: 'Is this message a question, a complaint or praise? Answer with exactly" in text
    assert "succeeded after 18 rollouts" in text
    check_hints(text, tmp_path / ".agl" / "log.db")
    # The list of examples says: play it again, without a model.
    algorithm = f"{EXAMPLES / 'prompt_search.py'}:search"
    code, said = invoke("replay", "prompt_search", "--log", str(tmp_path / ".agl" / "log.db"), "--algorithm", algorithm)
    assert code == 0 and "makes the same decisions" in said, said


def test_the_tool_agent_uses_its_tool_where_it_is_told_to(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    text = run("tool_agent.py")
    assert re.findall(r"\[compare\] (\S+)  (\d) tool calls", text) == [("0.0", "0"), ("1.0", "3")]
    assert "Best prompt_template: 'You work in a furniture shop. Look up every price" in text
    check_hints(text, tmp_path / ".agl" / "log.db")


def test_the_tool_agent_says_in_a_sentence_what_it_needs(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "langgraph"
    missing.mkdir()
    (missing / "__init__.py").write_text("raise ImportError(\"No module named 'langgraph'\")")
    text = run("tool_agent.py", code=1, PYTHONPATH=str(tmp_path))
    assert text.count("\n") == 1 and "pip install langgraph langchain-openai" in text


@pytest.mark.parametrize("name", ["prompt_search.py", "several_prompts.py"])
def test_an_example_without_a_key_says_so_in_a_sentence(run: Run, name: str) -> None:
    text = run(name, code=1, OPENAI_API_KEY="")
    assert text.count("\n") == 1 and "Set OPENAI_API_KEY" in text


def test_several_prompts_are_tuned_together(run: Run, tmp_path: Path) -> None:
    text = run("several_prompts.py")
    # Neither change alone helps: the terse answer is right only with notes that have every quantity.
    assert re.findall(r"\[tune\] +([\d.]+)  ", text) == ["0.00", "0.00", "0.00", "1.00"]
    assert "Best notes: 'List every quantity" in text
    assert "Best answer: '{question} Answer with the number only." in text
    check_hints(text, tmp_path / ".agl" / "log.db")


def test_an_example_takes_the_address_of_any_store(run: Run, tmp_path: Path) -> None:
    text = run("several_prompts.py", "--store", "sqlite:///./other.db")
    assert document("ps", "--log", str(tmp_path / "other.db"))
    assert not (tmp_path / ".agl").exists() and "--log sqlite:///./other.db" in text
    assert "keeps" in run("several_prompts.py", "--store", "memory://")
    with running("store", "--port", "0", "--log", "sqlite:///./served.db", cwd=tmp_path) as store:
        url = re.findall(r"http://\S+", store.wait_for(store.err, "Serving"))[0]
        assert "Best answer" in run("several_prompts.py", "--store", url)


def test_every_example_is_in_the_list() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w./]+)\)", text))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= linked
    assert [name for name in linked if not (EXAMPLES / name).exists()] == []
