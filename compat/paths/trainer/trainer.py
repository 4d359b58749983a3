"""The import path agentlightning.trainer.trainer of the older releases."""

from agentlightning.algorithms.trainer.trainer import Trainer as Trainer
