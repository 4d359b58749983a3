"""What agentlightning.logging was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.loglines import configure_logger as configure_logger
from agentlightning.core.loglines import setup_logging as setup
from agentlightning.core.loglines import setup_logging as setup_logging
from agentlightning.core.loglines import setup_module_logging as setup_module
from agentlightning.core.loglines import setup_module_logging as setup_module_logging
