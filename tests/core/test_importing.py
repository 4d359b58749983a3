"""Functions that are called with a module once the program has imported it."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agentlightning.core.importing import ImportHook


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], ImportHook]]:
    """The calls of a hook on ``watched_one`` and ``watched_two``, and the hook; the second module is in an archive."""
    (tmp_path / "watched_one.py").write_text("value = 1\n", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("watched_two.py", "import beside\nvalue = 2\n")
        archive.writestr("beside.py", "value = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "more.zip"))
    calls: list[str] = []

    def act(module: ModuleType) -> None:
        calls.append(f"{module.__name__}={module.value}")

    before = list(sys.meta_path)
    yield calls, ImportHook({"watched_one": act, "watched_two": act, "watched_none": act})
    sys.meta_path[:] = before
    for name in ("watched_one", "watched_two", "beside"):
        sys.modules.pop(name, None)


def test_a_module_is_acted_on_when_its_code_has_run_and_once_an_import(seen: tuple[list[str], ImportHook]) -> None:
    calls, hook = seen
    hook.install()
    assert calls == []
    importlib.import_module("watched_two")  # its archive's loader is that of the module beside it too
    importlib.import_module("watched_two")
    importlib.import_module("watched_one")
    assert calls == ["watched_two=2", "watched_one=1"]
    del sys.modules["watched_one"]
    importlib.import_module("watched_one")
    assert calls == ["watched_two=2", "watched_one=1", "watched_one=1"]


def test_a_module_that_is_loaded_is_acted_on_at_once_and_one_that_is_missing_stays_so(
    seen: tuple[list[str], ImportHook],
) -> None:
    calls, hook = seen
    importlib.import_module("watched_one")
    hook.install()
    assert calls == ["watched_one=1"]
    with pytest.raises(ModuleNotFoundError, match="watched_none"):
        importlib.import_module("watched_none")
    sys.meta_path.remove(hook)
    importlib.import_module("watched_two")
    assert calls == ["watched_one=1"]
