"""The import path agentlightning.algorithm of the older releases."""

from . import utils as utils
from .base import Algorithm as Algorithm
from .decorator import algo as algo
from .fast import Baseline as Baseline
from .fast import FastAlgorithm as FastAlgorithm
