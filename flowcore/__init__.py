"""flowcore: an embeddable, observability-first workflow engine.

Named steps, `depends_on`, parallelism by a ready queue, retries, timeouts, saga compensation and idempotency keys, in your
own process. The README begins with ten lines that run.
"""

from __future__ import annotations

from .context import Context
from .errors import (
    AsyncStepInSyncEngine,
    CompensationFailed,
    CorruptRecord,
    DefinitionError,
    DependencyCycle,
    DuplicateStep,
    Fatal,
    FlowcoreError,
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LeaseLost,
    NoResult,
    NotSerializable,
    RetryAfter,
    RunFailed,
    RunNotFound,
    RunParked,
    RunTimeout,
    StepCancelled,
    StepTimeout,
    StoreError,
    StoreUnavailable,
    UndoInterrupted,
    UnknownDependency,
)
from .events import SKIP_RUN, Event, Hook, Logger, LoggingHook, PrintLogger
from .retry import Backoff, Retry
from .run import Run, StepReport
from .status import Status
from .threads import Engine
from .workflow import Step, Workflow
