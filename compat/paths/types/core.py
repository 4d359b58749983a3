"""The import path agentlightning.types.core of the older releases."""

from agentlightning.compat.task_protocol import GenericResponse as GenericResponse
from agentlightning.compat.task_protocol import RolloutLegacy as RolloutLegacy
from agentlightning.compat.task_protocol import RolloutRawResultLegacy as RolloutRawResultLegacy
from agentlightning.compat.task_protocol import Task as Task
from agentlightning.compat.task_protocol import TaskIfAny as TaskIfAny
from agentlightning.core.model.hooks import Dataset as Dataset
from agentlightning.core.model.hooks import Hook as Hook
from agentlightning.core.model.hooks import ParallelWorkerBase as ParallelWorkerBase
from agentlightning.core.model.rollout import Attempt as Attempt
from agentlightning.core.model.rollout import AttemptedRollout as AttemptedRollout
from agentlightning.core.model.rollout import EnqueueRolloutRequest as EnqueueRolloutRequest
from agentlightning.core.model.rollout import FilterField as FilterField
from agentlightning.core.model.rollout import FilterOptions as FilterOptions
from agentlightning.core.model.rollout import PaginatedResult as PaginatedResult
from agentlightning.core.model.rollout import Rollout as Rollout
from agentlightning.core.model.rollout import RolloutConfig as RolloutConfig
from agentlightning.core.model.rollout import RolloutRawResult as RolloutRawResult
from agentlightning.core.model.rollout import SortOptions as SortOptions
from agentlightning.core.model.rollout import Triplet as Triplet
from agentlightning.core.model.rollout import Worker as Worker
from agentlightning.core.model.status import AttemptStatus as AttemptStatus
from agentlightning.core.model.status import RolloutMode as RolloutMode
from agentlightning.core.model.status import RolloutStatus as RolloutStatus
from agentlightning.core.model.status import TaskInput as TaskInput
from agentlightning.core.model.status import WorkerStatus as WorkerStatus
