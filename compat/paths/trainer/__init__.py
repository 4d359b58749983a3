"""The import path agentlightning.trainer of the older releases."""

from .init_utils import build_component as build_component
from .trainer import Trainer as Trainer
