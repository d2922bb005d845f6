"""Every error that flowcore raises.

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
├── ResultLost
├── SnapshotIsReadOnly
├── LeaseLost
├── RunParked
├── QueueFull
├── NoThread
└── StoreError
    ├── RunNotFound
    ├── StoreUnavailable
    ├── CorruptRecord
    ├── SendRefused
    └── NotSerializable

Steps raise ``Fatal`` and ``RetryAfter`` themselves, to steer their own retries.

The first sentence of a class's docstring is its default message, so ``raise LeaseLost()`` needs no message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, cast

if TYPE_CHECKING:
    from datetime import timedelta

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
    "NoThread",
    "NotSerializable",
    "QueueFull",
    "ResultLost",
    "RetryAfter",
    "RunFailed",
    "RunNotFound",
    "RunParked",
    "RunTimeout",
    "SendRefused",
    "SnapshotIsReadOnly",
    "StepCancelled",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "UndoInterrupted",
    "UnknownDependency",
    "error_message",
    "hashed_key",
    "one_line",
    "restored",
    "safe_repr",
    "safe_str",
]


_BLANKS: Final = "\u00a0\u202f\u2007\u3000"
"""blanks that `str.isprintable` rejects although they are harmless"""


def safe_repr(value: object, limit: int = 80) -> str:
    """Return the repr of a value for a one-line message: escaped, and clipped to `limit` characters. Never raises."""
    if isinstance(value, str):
        if len(value) <= limit and value.isascii():
            return repr(value)
        return one_line(repr(value if len(value) <= limit else value[:limit] + "…"))
    try:
        text = repr(value)
    except Exception as failure:  # noqa: BLE001 - anything may happen in user code
        text = f"a {type(value).__name__} (its __repr__ raised {type(failure).__name__})"
    return one_line(text if len(text) <= limit else text[:limit] + "…")


def safe_str(error: BaseException, limit: int = 1024) -> str:
    """Return `error_message` on one line: line breaks and control characters are escaped. Never raises."""
    return one_line(error_message(error, limit))


def error_message(error: BaseException, limit: int = 1024) -> str:
    """Return `str(error)`, clipped to `limit` characters. Never raises."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - anything may happen in user code
        text = f"(its __str__ raised {type(failure).__name__})"
    return text if len(text) <= limit else text[:limit] + "…"


def encodable(text: str, stream: object) -> str:
    """Escape the characters of `text` that the encoding of a text stream lacks, if the stream has an encoding."""
    encoding = getattr(stream, "encoding", None)
    return text if encoding is None else text.encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: str) -> str:
    """Return a text with every character escaped that could begin a new line or control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _BLANKS else char.encode("unicode_escape").decode() for char in text
    )


def hashed_key(key: object) -> str:
    """Return 16 hex digits of the SHA-256 of an idempotency key, for messages, which reach logs and spans."""
    if not isinstance(key, str):  # a hostile record may hold a key of any type
        return safe_repr(key)
    import hashlib

    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def restored(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Restore a pickled error. Its __init__ is not called, because it would replace the message."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__cause__ = state.pop("__cause__", None)
    error.__dict__.update(state)
    return error


_unpickled = restored
"""the name under which older releases have pickled it"""


class FlowcoreError(Exception):
    """Something went wrong inside flowcore."""

    key: str | None = None
    """the idempotency key that the error is about, if any; the message contains only a hash of it"""

    def __init__(self, message: str | None = None, *, key: str | None = None) -> None:
        super().__init__(message if message is not None else (type(self).__doc__ or "").strip())
        if key is not None:
            self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        from .portable import portable

        state = {**self.__dict__, "__cause__": portable(self.__cause__)}
        return restored, (type(self), self.args, state)

    def __copy__(self) -> Self:
        # What __reduce__ returns is for pickle: it may have stand-ins for other errors.
        return cast("Self", restored(type(self), self.args, {**self.__dict__, "__cause__": self.__cause__}))


class DefinitionError(FlowcoreError):
    """The workflow is defined in a way that cannot run."""


class DuplicateStep(DefinitionError):
    """Two steps of one workflow share a name."""


class UnknownDependency(DefinitionError):
    """A step depends on a step that the workflow does not have."""


class DependencyCycle(DefinitionError):
    """The dependencies of the steps form a cycle."""


class AsyncStepInSyncEngine(FlowcoreError):
    """Engine cannot run async steps: use AsyncEngine."""


class NoResult(FlowcoreError, KeyError):
    """The step has no result."""

    # KeyError prints the repr of its argument; this message is a sentence.
    __str__ = Exception.__str__


class IdempotencyError(FlowcoreError):
    """The idempotency key cannot be used."""


class IdempotencyInProgress(IdempotencyError):
    """Another run with this idempotency key is still in progress.

    `retry_after`: seconds after which a retry makes sense, a hint for clients. `lease_left`: seconds until the lease of
    the run's owner ends; infinite in memory. `run_id`: the run that uses the key. `waiting_for`: the names of the waits
    that this run is in, if none of its other steps can run.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float = 0.0,
        lease_left: float = 0.0,
        run_id: str = "",
        key: str | None = None,
        waiting_for: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message or "Another run with this idempotency key is still in progress.", key=key)
        self.waiting_for = waiting_for
        self.retry_after = retry_after
        self.lease_left = lease_left
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
    """At least one undo failed: the effect of its step remains.

    An ExceptionGroup of the undo errors. Its `__cause__` is the error that failed the run. `run`: the failed run.
    `failures`: the error of each failed undo, by step name.
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

    # __new__ has set the group's message and errors; the __init__ of FlowcoreError would overwrite args.
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __reduce__(self) -> tuple[Any, ...]:
        from .portable import portable

        errors = [portable(error) for error in self.exceptions]
        places = {id(error): place for place, error in enumerate(self.exceptions)}
        failures = {step: errors[places[id(error)]] for step, error in self.failures.items() if id(error) in places}
        state = {**self.__dict__, "failures": failures, "__cause__": portable(self.__cause__)}
        return restored, (type(self), (self.message, errors), state)

    def derive(self, excs: Sequence[Any], /) -> Any:
        """Keep type, run and failures when the group is split, as `except*` does."""
        kept = {name: error for name, error in self.failures.items() if error in excs}
        derived = CompensationFailed(self.message, excs, self.run)
        derived.failures = kept
        return derived


class RunFailed(FlowcoreError):
    """The run failed in another process.

    `run`: its id. `step`: the step that failed it. `error_type`, `message`, `traceback_text`: its error, as text.
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


class ResultLost(FlowcoreError):
    """The step ran in its executor, and its result did not come back.

    `done`: True if its function has returned, so that its effect has happened; False if that is unknown.
    """

    def __init__(self, message: str | None = None, *, done: bool = False) -> None:
        super().__init__(message or "The step ran in its executor, and its result did not come back.")
        self.done = done


class SnapshotIsReadOnly(FlowcoreError, TypeError):
    """A step with executor= cannot write to its ctx, which is a copy. Return the value instead."""


class LeaseLost(FlowcoreError):
    """Another owner has taken this run over.

    `run_id`: the id of the run.
    """

    def __init__(self, message: str | None = None, *, run_id: str = "") -> None:
        super().__init__(message or "Another owner has taken this run over.")
        self.run_id = run_id


class QueueFull(FlowcoreError):
    """Too many submitted runs wait for a thread of this engine. Submit it again later."""


class NoThread(FlowcoreError):
    """This process cannot start another thread. Raise the limit on threads of its user or container, then try again."""


class RunParked(FlowcoreError):
    """The run is parked: it resumes on the next call with its key or on recover()."""


class StoreError(FlowcoreError):
    """The store could not carry out an operation."""


class RunNotFound(StoreError):
    """The store has no such run."""


class StoreUnavailable(StoreError):
    """The store is temporarily unreachable."""


class CorruptRecord(StoreError):
    """The store holds a record that flowcore did not write."""


class SendRefused(StoreError):
    """The run does not wait for this value: it has no such wait, is past it, or is over."""


class NotSerializable(StoreError):
    """A value cannot be stored."""


class Fatal(Exception):
    """Raised by a step whose failure is final: no further attempt is made."""


class RetryAfter(Exception):
    """Raised by a step to have the next attempt made after `delay`, instead of after the backoff.

    `delay`: seconds, a timedelta, or the value of an HTTP Retry-After header (seconds, or a date, which is compared
    with this machine's clock; a past date means at once). The attribute `seconds` is the delay as a float. Raises
    DefinitionError for any other delay. It adds no attempts: if none is left, the step fails with this error.
    """

    def __init__(self, delay: float | timedelta | str, message: str | None = None) -> None:
        wait = _delay(delay)
        super().__init__(message or f"retry after {wait:g} s")
        self.seconds = wait

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, self.__dict__)


def _delay(given: Any) -> float:
    if isinstance(given, str):
        wait = _header_delay(given.strip())
    else:
        wait = given.total_seconds() if hasattr(given, "total_seconds") and not isinstance(given, type) else given
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0:
        raise DefinitionError(
            f"RetryAfter takes seconds (0 or more), a timedelta or an HTTP Retry-After header, not {safe_repr(given)}."
        )
    try:
        return float(wait)
    except OverflowError:
        return math.inf


def _header_delay(header: str) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), or None if it is malformed."""
    digits = header.replace(".", "", 1)
    if digits.isascii() and digits.isdigit():
        return float(header)
    # Imported only for a date, because the email package costs more than all of flowcore.
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())
