"""flowcore: an embeddable, observability-first workflow engine.

Named steps, `depends_on`, parallelism by a ready queue, retries, timeouts, saga compensation and idempotency keys, in
your own process. The README begins with ten lines that run.
"""

from __future__ import annotations

from typing import Any

from ._engines.aio import AsyncEngine
from ._engines.aio_handles import AsyncRunFuture
from ._engines.handles import RunFuture
from ._engines.threads import Engine
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
    NoThread,
    NotSerializable,
    QueueFull,
    ResultLost,
    RetryAfter,
    RunFailed,
    RunNotFound,
    RunParked,
    RunTimeout,
    SendRefused,
    SnapshotIsReadOnly,
    StepCancelled,
    StepTimeout,
    StoreError,
    StoreUnavailable,
    UndoInterrupted,
    UnknownDependency,
)
from .events import SKIP_RUN, Event, Hook, Logger, LoggingHook, PrintLogger, ProgressHook
from .keys import NO_KEY
from .retry import Backoff, Retry
from .run import Run, Sent, StepReport
from .snapshot import ContextSnapshot
from .status import Status
from .step import Landed, NotLanded, Step
from .stores import MemoryStore
from .workflow import Workflow

__all__ = [
    "NO_KEY",
    "SKIP_RUN",
    "AsyncEngine",
    "AsyncRunFuture",
    "AsyncStepInSyncEngine",
    "Backoff",
    "CompensationFailed",
    "Context",
    "ContextSnapshot",
    "CorruptRecord",
    "DefinitionError",
    "DependencyCycle",
    "DuplicateStep",
    "Engine",
    "Event",
    "Fatal",
    "FlowcoreError",
    "Hook",
    "IdempotencyError",
    "IdempotencyHeld",
    "IdempotencyInProgress",
    "IdempotencyMismatch",
    "Landed",
    "LeaseLost",
    "Logger",
    "LoggingHook",
    "MemoryStore",
    "NoResult",
    "NoThread",
    "NotLanded",
    "NotSerializable",
    "PrintLogger",
    "ProgressHook",
    "QueueFull",
    "ResultLost",
    "Retry",
    "RetryAfter",
    "Run",
    "RunFailed",
    "RunFuture",
    "RunNotFound",
    "RunParked",
    "RunTimeout",
    "SendRefused",
    "Sent",
    "SnapshotIsReadOnly",
    "Status",
    "Step",
    "StepCancelled",
    "StepReport",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "UndoInterrupted",
    "UnknownDependency",
    "Workflow",
]


def __getattr__(name: str) -> Any:
    # Reading the metadata costs more than all other imports here together, and few programs need the version.
    if name == "__version__":
        from importlib.metadata import version

        return version("flowcore")
    raise AttributeError(f"module 'flowcore' has no attribute {name!r}")
