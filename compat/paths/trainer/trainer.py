"""What agentlightning.trainer.trainer was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.trainer.trainer import Trainer as Trainer
