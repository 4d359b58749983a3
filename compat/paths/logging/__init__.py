"""The import path agentlightning.logging of the older releases."""

from agentlightning.core.logging_setup import configure_logger as configure_logger
from agentlightning.core.logging_setup import setup_logging as setup_logging
from agentlightning.core.logging_setup import setup_module_logging as setup_module_logging

setup = setup_logging
setup_module = setup_module_logging
