"""What agentlightning.logging was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.logging_setup import configure_logger as configure_logger
from agentlightning.core.logging_setup import setup_logging as setup
from agentlightning.core.logging_setup import setup_logging as setup_logging
from agentlightning.core.logging_setup import setup_module_logging as setup_module
from agentlightning.core.logging_setup import setup_module_logging as setup_module_logging
