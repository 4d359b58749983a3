"""What agentlightning.types.core was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.core.model import Attempt as Attempt
from agentlightning.core.vocabulary import AttemptStatus as AttemptStatus
from agentlightning.core.model import AttemptedRollout as AttemptedRollout
from agentlightning.core.hooks import Dataset as Dataset
from agentlightning.core.model import EnqueueRolloutRequest as EnqueueRolloutRequest
from agentlightning.core.model import FilterField as FilterField
from agentlightning.core.model import FilterOptions as FilterOptions
from agentlightning.core.legacy import GenericResponse as GenericResponse
from agentlightning.core.hooks import Hook as Hook
from agentlightning.core.model import PaginatedResult as PaginatedResult
from agentlightning.core.hooks import ParallelWorkerBase as ParallelWorkerBase
from agentlightning.core.model import Rollout as Rollout
from agentlightning.core.model import RolloutConfig as RolloutConfig
from agentlightning.core.legacy import RolloutLegacy as RolloutLegacy
from agentlightning.core.vocabulary import RolloutMode as RolloutMode
from agentlightning.core.model import RolloutRawResult as RolloutRawResult
from agentlightning.core.legacy import RolloutRawResultLegacy as RolloutRawResultLegacy
from agentlightning.core.vocabulary import RolloutStatus as RolloutStatus
from agentlightning.core.model import SortOptions as SortOptions
from agentlightning.core.legacy import Task as Task
from agentlightning.core.legacy import TaskIfAny as TaskIfAny
from agentlightning.core.vocabulary import TaskInput as TaskInput
from agentlightning.core.legacy import Triplet as Triplet
from agentlightning.core.model import Worker as Worker
from agentlightning.core.vocabulary import WorkerStatus as WorkerStatus
