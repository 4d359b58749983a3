"""The import path agentlightning.utils.server_launcher of the older releases."""

from agentlightning.rest.server.server import LaunchMode as LaunchMode
from agentlightning.rest.server.server import PythonServerLauncherArgs as PythonServerLauncherArgs
