"""The import paths of the older releases: all of them work, cost nothing unless used, and say what has no successor."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import agentlightning as agl
from agentlightning.compat.gone_names import GONE_MODULES, GONE_NAMES, OLD_PACKAGES

from ..repository.test_import import fresh
from ..sources import OLD_PATHS, ROOT

USED = """
    litagent.LitAgent trainer.Trainer server.AgentLightningServer client.AgentLightningClient client.DevTaskLoader
    types.PromptTemplate types.Rollout types.Span store.LightningStoreClient store.base.UNSET
    store.client_server.LightningStoreServer store.memory.InMemoryLightningStore runner.LitAgentRunner
    runner.LegacyAgentRunner tracer.AgentOpsTracer tracer.OtelTracer tracer.otel.LightningSpanProcessor
    adapter.TraceToMessages adapter.triplet.TraceTree adapter.triplet.RewardMatchPolicy algorithm.algo
    algorithm.fast.Baseline algorithm.utils.with_store emitter.emit_reward reward.find_final_reward
    semconv.LightningSpanAttributes utils.otel.flatten_attributes utils.server_launcher.PythonServerLauncherArgs
    utils.id.generate_id execution.ExecutionEvent cli.main env_var.LightningEnvVar config.lightning_cli
    instrumentation.instrument_all logging.setup
""".split()
"""The import paths that users of the older releases rely on."""


@pytest.mark.parametrize("path", USED)
def test_an_import_path_that_users_rely_on_works(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(f"agentlightning.{module}"), name) is not None


def test_every_module_can_be_imported_and_re_exports_names_of_today() -> None:
    assert {path.name for path in OLD_PATHS.iterdir() if path.name != "__pycache__"} == OLD_PACKAGES
    for file in OLD_PATHS.rglob("*.py"):
        path = file.relative_to(OLD_PATHS).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert path not in GONE_MODULES
        old = importlib.import_module(f"agentlightning.{path}")
        assert old.__file__ is not None and Path(old.__file__).samefile(file)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and path != "reward":
                for alias in node.names:
                    assert alias.asname is not None, f"{path}.{alias.name}: type checkers see only `X as X`"
                    assert hasattr(old, alias.asname), f"{path}.{alias.asname}"


def test_old_modules_are_attributes_of_the_package_and_of_each_other() -> None:
    assert isinstance(agl.types, ModuleType)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    program = """
        import agentlightning as agl
        print(agl.store.memory.InMemoryLightningStore.__name__, agl.logging.setup.__name__)
        import agentlightning.types
        from agentlightning.types import *
        print(Rollout.__name__, hasattr(agl, "Nope"), hasattr(agl, "__wrapped__"))
    """
    assert fresh(program, Path.cwd()) == "InMemoryLightningStore setup_logging\nRollout False False\n"


def test_a_module_that_hides_a_function_is_that_function_too() -> None:
    program = """
        import agentlightning as agl
        import agentlightning.reward
        from agentlightning import reward
        assert callable(agl.reward) and agl.reward.find_final_reward is agl.find_final_reward
        @agl.reward
        def half(): return 0.5
        print(half())
    """
    assert "0.5\n" in fresh(program, Path.cwd())


@pytest.mark.parametrize("path", sorted(GONE_MODULES))
def test_a_module_without_a_successor_says_what_to_use(path: str) -> None:
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"agentlightning.{path}")
    assert GONE_MODULES[path] in str(caught.value)


def test_a_name_without_a_successor_says_what_to_use() -> None:
    for name, words in GONE_NAMES.items():
        with pytest.raises(ImportError) as caught:
            exec(f"from agentlightning import {name}")
        assert words in str(caught.value)
    with pytest.raises(ImportError, match="OtelTracer"):
        from agentlightning.tracer import WeaveTracer  # type: ignore  # noqa: F401  # pyright: ignore


def test_a_name_without_a_successor_is_no_attribute() -> None:
    import agentlightning.tracer

    for name, words in GONE_NAMES.items():
        assert not hasattr(agl, name) and not hasattr(agentlightning.tracer, name)
        with pytest.raises(AttributeError) as caught:
            getattr(agl, name)
        assert words in str(caught.value)


def test_what_no_release_had_is_an_ordinary_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="agentlightning.nope"):
        importlib.import_module("agentlightning.nope")
    with pytest.raises(ImportError, match="Nope"):
        exec("from agentlightning.types import Nope")
    assert importlib.util.find_spec("agentlightning.nope") is None
    assert importlib.util.find_spec("agentlightning.types") is not None


def test_old_paths_cost_nothing_until_one_is_used() -> None:
    program = """
        import sys
        import agentlightning as agl
        agl.InMemoryLightningStore, agl.LitAgentRunner
        assert not [name for name in sys.modules if name.startswith(("agentlightning.compat", "agentlightning.store"))]
    """
    fresh(program, Path.cwd())


def test_the_finder_is_there_once_however_often_the_package_is_loaded() -> None:
    program = """
        import importlib, sys
        import agentlightning
        importlib.reload(agentlightning)
        print(sum(getattr(finder, "__name__", "") == "_GoneNames" for finder in sys.meta_path))
    """
    assert fresh(program, Path.cwd()) == "1\n"


def _reward_of(rollout: agl.RolloutLegacy) -> float | None:
    return rollout.final_reward


def test_pickles_and_other_processes_know_old_paths() -> None:
    from agentlightning.types import RolloutLegacy

    rollout = RolloutLegacy(rollout_id="r", final_reward=0.5)
    assert pickle.loads(pickle.dumps(rollout)) == rollout
    # As an older release wrote it: the class by its module of then.
    old = pickle.dumps(agl.Triplet, protocol=0).replace(b"agentlightning.core.model.rollout", b"agentlightning.types.core")
    assert pickle.loads(old) is agl.Triplet
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_reward_of, (rollout,)) == 0.5


def test_python_m_says_that_there_is_nothing_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentlightning.litagent"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "cannot be directly executed" in run.stderr and "Traceback" not in run.stderr
    command = [sys.executable, "-m", "agentlightning", "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_type_checkers_accept_the_tutorials_programs_in_the_checkout() -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", "examples/getting_started"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert result["summary"]["filesAnalyzed"] == 2
    assert result["generalDiagnostics"] == []


class _Options:
    def __init__(self, name: str, rate: float = 0.5, fast: bool = False, tags: list[str] | None = None) -> None:
        self.given = (name, rate, fast, tags)


def test_lightning_cli_makes_instances_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "x --_options.name n --_options.fast yes --_options.tags a b".split()
    monkeypatch.setattr(sys, "argv", words)
    assert agl.lightning_cli(_Options).given == ("n", 0.5, True, ["a", "b"])
    assert agl.lightning_cli() == ()
    monkeypatch.setattr(sys, "argv", ["x", "--_options.rate", "none"])
    with pytest.raises(SystemExit) as caught:
        agl.lightning_cli(_Options)
    assert caught.value.code == 2
