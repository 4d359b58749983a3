"""The import path agentlightning.utils of the older releases."""

from . import id as id
from . import otel as otel
from . import server_launcher as server_launcher
from . import system_snapshot as system_snapshot
