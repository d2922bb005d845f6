"""Retry policies: whether another attempt follows, and when. Pure: no clock, no sleep, no hidden randomness."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from .errors import DefinitionError, Fatal, RetryAfter, safe_repr, safe_str
from .functions import take_one_argument

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Backoff", "Duration", "Pause", "Retry", "flag", "seconds"]

ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]
waits: Final[ContextVar[bool]] = ContextVar("flowcore_waits", default=True)
"""whether runs begun in this context wait between attempts; `flowcore.testing.no_waiting` sets it to False"""
Duration: TypeAlias = "float | timedelta"
"""Seconds, or a timedelta."""
CENTURY: Final = 100 * 365 * 24 * 3600.0
"""seconds of the longest wait: a later moment fits neither the timers of the engines nor the records of stores"""
Predicate = Callable[[BaseException], bool | float]
"""takes the error of a failed attempt; returns False to give up, True to retry after the backoff, or seconds to wait"""


def seconds(value: Duration, what: str) -> float:
    """Return `value` in seconds. Raises DefinitionError, which names `what`, unless it is 0 or more."""
    # There is no isinstance check for timedelta, because importing datetime costs more than this module.
    given: Any = value
    number: Any = given.total_seconds() if hasattr(given, "total_seconds") and not isinstance(given, type) else given
    if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
        raise DefinitionError(f"{what} must be seconds (0 or more) or a timedelta, not {safe_repr(value)}.")
    try:
        return float(number)
    except OverflowError:
        return math.inf


def flag(value: bool, what: str) -> bool:
    """Return `value`. Raises DefinitionError, which names `what`, unless it is True or False."""
    if not isinstance(value, bool):
        raise DefinitionError(f"{what} must be True or False, not {safe_repr(value)}.")
    return value


def some_random() -> float:
    """Return random.random(); the module is imported only when jitter first needs it."""
    from random import random

    return random()  # noqa: S311 - it spreads retries, it keeps no secrets


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a retry. Make one with `none`, `fixed` or `exponential`. Immutable and shareable."""

    initial: float
    factor: float
    max_delay: float
    jitter: bool

    @classmethod
    def none(cls) -> Backoff:
        """Retry at once."""
        return cls(0.0, 1.0, 0.0, jitter=False)

    @classmethod
    def fixed(cls, delay: Duration) -> Backoff:
        """Wait `delay` seconds before every retry."""
        wait = seconds(delay, "Backoff.fixed(delay)")
        return cls(wait, 1.0, wait, jitter=False)

    @classmethod
    def exponential(
        cls, delay: Duration, *, factor: float = 2, max_delay: Duration = 60, jitter: bool = True
    ) -> Backoff:
        """Wait `delay`, then `factor` times as long with every retry, at most `max_delay` seconds.

        With `jitter`, the wait is drawn evenly from zero to that bound ("full jitter"). This spreads many clients best
        (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= sys.float_info.max:
            raise DefinitionError(f"Backoff.exponential(factor=) must be a number from 1 up, not {safe_repr(factor)}.")
        return cls(
            seconds(delay, "Backoff.exponential(delay)"),
            float(factor),
            seconds(max_delay, "Backoff.exponential(max_delay=)"),
            flag(jitter, "Backoff.exponential(jitter=)"),
        )

    def bound(self, n: int) -> float:
        """Return the longest wait, in seconds, before the n-th retry (1 = the first); never above `max_delay`."""
        if n < 1:
            raise DefinitionError(f"A backoff counts retries from 1, not {n}.")
        try:
            return min(self.initial * self.factor ** (n - 1), self.max_delay)
        except OverflowError:
            return self.max_delay if self.initial else 0.0

    def delay(self, n: int, random: Callable[[], float] | None = None) -> float:
        """Return the seconds to wait before the n-th retry (1 = the first).

        `random` returns a float in [0, 1), for the jitter; None means random.random.
        """
        return self.bound(n) * (random or some_random)() if self.jitter else self.bound(n)


class Pause(NamedTuple):
    """The decision to make another attempt after `delay` seconds. `reason`: policy, retry_after or predicate."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy: at most `attempts` attempts, the first included, with `backoff` between them (None: no wait).

    `on`: the exception type, or types, worth another attempt; or a predicate that takes the error and returns a bool,
    or the seconds to wait. Only Exceptions are ever retried, never KeyboardInterrupt and the like. `max_elapsed`: make
    no attempt that would start later than this many seconds after the first attempt started. A step that raises `Fatal`
    is not retried; `RetryAfter(seconds)` sets the wait. An ExceptionGroup that contains `Fatal`, at any depth, is not
    retried either; one that contains `RetryAfter` sets the longest of its waits.
    """

    attempts: int
    backoff: Backoff | None = None
    on: ExceptionTypes | Predicate = Exception
    max_elapsed: float | None = None

    def __init__(
        self,
        attempts: int,
        backoff: Backoff | None = None,
        *,
        on: ExceptionTypes | Predicate = Exception,
        max_elapsed: Duration | None = None,
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise DefinitionError(
                f"Retry(attempts) counts the first attempt too: 1 or more, not {safe_repr(attempts)}."
            )
        if backoff is not None and not isinstance(backoff, Backoff):
            raise DefinitionError(
                f"Retry(backoff=) must be a Backoff, such as Backoff.fixed(1), not {safe_repr(backoff)}."
            )
        types = cast("tuple[Any, ...]", on if isinstance(on, tuple) else (on,))
        for entry in types:
            known = issubclass(entry, BaseException) if isinstance(entry, type) else callable(entry) and entry is on
            if not known:
                raise DefinitionError(f"Retry(on=) must be exception types or one predicate, not {safe_repr(entry)}.")
        if not isinstance(on, type | tuple):
            take_one_argument(on, "the predicate of Retry(on=)", "error", sync=True)
        object.__setattr__(self, "attempts", attempts)
        object.__setattr__(self, "backoff", backoff)
        object.__setattr__(self, "on", on)
        limit = None if max_elapsed is None else seconds(max_elapsed, "Retry(max_elapsed=)")
        object.__setattr__(self, "max_elapsed", limit)

    @classmethod
    def of(cls, value: int | Retry | None, what: str) -> Retry | None:
        """Return the policy of a step's `retry=`, where an int is a number of attempts; None if it never retries.
        Raises DefinitionError, which names `what`."""
        if isinstance(value, bool) or (isinstance(value, int) and value < 1):
            raise DefinitionError(f"{what} counts the first attempt too: 1 or more, not {safe_repr(value)}.")
        retry = cls(value) if isinstance(value, int) else value
        if retry is not None and not isinstance(retry, Retry):
            raise DefinitionError(f"{what} must be a number of attempts or a Retry, not {safe_repr(value)}.")
        return None if retry is None or retry.attempts == 1 else retry

    def after(
        self,
        attempt: int,
        error: BaseException,
        elapsed: float,
        random: Callable[[], float],
        context: Context | None = None,
    ) -> Pause | None:
        """Return the Pause that follows attempt number `attempt` (from 1), which raised `error`, or None to give up.

        A pause lasts at most a century. `elapsed`: seconds since the first attempt started. `context`: the predicate is
        called in a copy of it. If the predicate raises, this returns None and adds a note to `error`.
        """
        if attempt >= self.attempts or not isinstance(error, Exception):
            return None
        waits: list[float] = []
        if isinstance(error, _STEERING_ERRORS):
            errors = _flattened(error)
            if any(isinstance(one, Fatal) for one in errors):
                return None
            waits = [one.seconds for one in errors if isinstance(one, RetryAfter)]
        pause = Pause(max(waits), "retry_after") if waits else self._by_policy(attempt, error, random, context)
        if pause is None or (self.max_elapsed is not None and elapsed + pause.delay > self.max_elapsed):
            return None
        return pause if pause.delay <= CENTURY else pause._replace(delay=CENTURY)

    def _by_policy(
        self, attempt: int, error: Exception, random: Callable[[], float], context: Context | None
    ) -> Pause | None:
        on = self.on
        if isinstance(on, type | tuple):
            return self._backed_off(attempt, random) if isinstance(error, on) else None
        try:
            # In a copy, because an abandoned call may still be in the context.
            wanted = on(error) if context is None else context.copy().run(on, error)
            if wanted is True or wanted is False:
                return self._backed_off(attempt, random) if wanted else None
            return Pause(seconds(wanted, "the result of Retry(on=)"), "predicate")
        except Exception as failure:  # noqa: BLE001 - the step's own error remains the one that is raised
            why = f"Retry(on=) raised {type(failure).__name__}: {safe_str(failure)}"
            error.add_note(f"flowcore made no further attempt: {why}")
            return None

    def _backed_off(self, attempt: int, random: Callable[[], float]) -> Pause:
        return Pause(self.backoff.delay(attempt, random) if self.backoff else 0.0, "policy")


_STEERING_ERRORS: Final[tuple[type[Exception], ...]] = (Fatal, RetryAfter, ExceptionGroup)
"""errors that themselves decide what follows, or whose members may"""


def _flattened(error: Any) -> list[BaseException]:
    """Return the error itself or, for a group, its members at any depth."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        members: list[Any] | None = _members(one)
        if members is None:
            found.append(one)
        else:
            waiting.extend(members)
    return found


def _members(error: Any) -> list[Any] | None:
    """Return the exceptions in a group; None for any other exception."""
    one: object = error
    return list(error.exceptions) if isinstance(one, BaseExceptionGroup) else None
