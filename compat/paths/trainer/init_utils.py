"""The import path agentlightning.trainer.init_utils of the older releases."""

from agentlightning.algorithms.trainer.components import build_component as build_component
