"""What agentlightning.utils.server_launcher was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.rest.server.server import LaunchMode as LaunchMode
from agentlightning.rest.server.server import PythonServerLauncherArgs as PythonServerLauncherArgs
