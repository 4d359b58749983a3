"""What agentlightning.utils.server_launcher was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.rest.server import LaunchMode as LaunchMode
from agentlightning.projections.rest.server import PythonServerLauncherArgs as PythonServerLauncherArgs
