"""Every error flowcore raises.

FlowcoreError
├── DefinitionError
│   ├── DuplicateStep
│   ├── UnknownDependency
│   └── DependencyCycle
├── AsyncStepInSyncEngine
├── NoResult                      (also a KeyError)
├── IdempotencyError
│   ├── IdempotencyInProgress
│   ├── IdempotencyMismatch
│   └── IdempotencyHeld
├── StepTimeout                   (also a TimeoutError)
├── RunTimeout                    (also a TimeoutError)
├── StepCancelled
├── UndoInterrupted
├── CompensationFailed            (also an ExceptionGroup)
├── RunFailed
├── LeaseLost
├── RunParked
├── QueueFull
└── StoreError
    ├── RunNotFound
    ├── StoreUnavailable
    ├── CorruptRecord
    └── NotSerializable

Raised BY steps, to steer their own retries: ``Fatal`` and ``RetryAfter``.

A class's docstring is its default message, so ``raise LeaseLost()`` already reads like a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .run import Run

__all__ = [
    "AsyncStepInSyncEngine",
    "CompensationFailed",
    "CorruptRecord",
    "DefinitionError",
    "DependencyCycle",
    "DuplicateStep",
    "Fatal",
    "FlowcoreError",
    "IdempotencyError",
    "IdempotencyHeld",
    "IdempotencyInProgress",
    "IdempotencyMismatch",
    "LeaseLost",
    "NoResult",
    "NotSerializable",
    "QueueFull",
    "RetryAfter",
    "RunFailed",
    "RunNotFound",
    "RunParked",
    "RunTimeout",
    "StepCancelled",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "UndoInterrupted",
    "UnknownDependency",
    "safe_repr",
    "safe_str",
]


def safe_repr(value: object, limit: int = 80) -> str:
    """A value from outside, fit for one line of a message: a string quoted, all escaped, clipped to `limit` characters."""
    if isinstance(value, str):
        if len(value) <= limit and value.isascii():
            return repr(value)
        text = repr(value if len(value) <= limit else value[:limit] + "…")
    else:
        try:
            text = repr(value)
        except Exception as failure:  # noqa: BLE001 - anything may happen in foreign code
            text = f"a {type(value).__name__} (its __repr__ raised {type(failure).__name__})"
        text = text if len(text) <= limit else text[:limit] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_str(error: BaseException, limit: int = 1024) -> str:
    """What `str(error)` says, whatever happens in it: a hostile `__str__` must not take a run down."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - anything may happen in foreign code
        text = f"(its __str__ raised {type(failure).__name__})"
    return text if len(text) <= limit else text[:limit] + "…"


class FlowcoreError(Exception):
    """Something went wrong inside flowcore."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (type(self).__doc__ or "").strip())


class DefinitionError(FlowcoreError):
    """The workflow is defined in a way that cannot run."""


class DuplicateStep(DefinitionError):
    """Two steps of one workflow share a name."""


class UnknownDependency(DefinitionError):
    """A step depends on a step that the workflow does not have."""


class DependencyCycle(DefinitionError):
    """Steps depend on each other in a circle."""


class AsyncStepInSyncEngine(FlowcoreError):
    """Engine cannot run async steps: use AsyncEngine."""


class NoResult(FlowcoreError, KeyError):
    """The step has no result."""

    # KeyError prints the repr of its argument; this message is a sentence.
    __str__ = Exception.__str__


class IdempotencyError(FlowcoreError):
    """The idempotency key cannot be used."""


class IdempotencyInProgress(IdempotencyError):
    """Another run with this idempotency key is still going on.

    `retry_after`: seconds after which asking again makes sense. `run_id`: the run that holds the key.
    """

    def __init__(self, message: str | None = None, *, retry_after: float = 0.0, run_id: str = "") -> None:
        super().__init__(message or "Another run with this idempotency key is still going on.")
        self.retry_after = retry_after
        self.run_id = run_id


class IdempotencyMismatch(IdempotencyError):
    """The idempotency key was used before with another workflow or other values."""


class IdempotencyHeld(IdempotencyError):
    """The run behind this idempotency key is held until an operator decides."""


class StepTimeout(FlowcoreError, TimeoutError):
    """The step did not finish in time."""


class RunTimeout(FlowcoreError, TimeoutError):
    """The run did not finish before its deadline."""


class StepCancelled(FlowcoreError):
    """The step was cancelled."""


class UndoInterrupted(FlowcoreError):
    """The undo was interrupted before it was done."""


class CompensationFailed(FlowcoreError, ExceptionGroup):
    """Some undo failed: what it should have undone still stands.

    An ExceptionGroup of the undo errors, caused by (`__cause__`) the error that failed the run. `run` is the
    failed run, `failures` maps the step name to the error of its undo.
    """

    run: Run | None
    failures: Mapping[str, BaseException]

    def __new__(
        cls, message: str, failures: Mapping[str, Exception] | Sequence[Exception], run: Run | None = None
    ) -> Self:
        errors = list(failures.values()) if isinstance(failures, Mapping) else list(failures)
        self = super().__new__(cls, message, errors)
        self.run = run
        self.failures = dict(failures) if isinstance(failures, Mapping) else {}
        return self

    # The group keeps its message and its errors from __new__; FlowcoreError's __init__ would overwrite args.
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def derive(self, excs: Sequence[Any], /) -> Any:
        """Keep type, run and failures when the group is split, as `except*` does."""
        kept = {name: error for name, error in self.failures.items() if error in excs}
        derived = CompensationFailed(self.message, excs, self.run)
        derived.failures = kept
        return derived


class RunFailed(FlowcoreError):
    """The run failed in another process.

    `run`: its id. `step`: the step that failed it. `error_type`, `message`, `traceback_text`: what is known of
    the error, as text.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        run: str = "",
        step: str | None = None,
        error_type: str = "",
        error_message: str = "",
        traceback_text: str = "",
    ) -> None:
        super().__init__(message or "The run failed in another process.")
        self.run = run
        self.step = step
        self.error_type = error_type
        self.message = error_message
        self.traceback_text = traceback_text


class LeaseLost(FlowcoreError):
    """Another owner has taken this run over.

    `run_id`: the run.
    """

    def __init__(self, message: str | None = None, *, run_id: str = "") -> None:
        super().__init__(message or "Another owner has taken this run over.")
        self.run_id = run_id


class QueueFull(FlowcoreError):
    """Too many submitted runs wait for a thread of this engine. Submit it again later."""


class RunParked(FlowcoreError):
    """The run is parked: the next call with its key, or recover(), goes on with it."""


class StoreError(FlowcoreError):
    """The store could not do what was asked."""


class RunNotFound(StoreError):
    """The store has no such run."""


class StoreUnavailable(StoreError):
    """The store does not answer."""


class CorruptRecord(StoreError):
    """The store holds a record that flowcore did not write."""


class NotSerializable(StoreError):
    """A value cannot be stored."""


class Fatal(Exception):
    """Raised by a step: this failure is final, make no further attempt."""


class RetryAfter(Exception):
    """Raised by a step: make the next attempt after `seconds`, whatever the backoff says.

    It does not add attempts: where none is left, the step has failed with this error.
    """

    def __init__(self, seconds: float, message: str | None = None) -> None:
        super().__init__(message or f"asked to be tried again after {seconds} s")
        self.seconds = seconds
