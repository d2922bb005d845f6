"""The base of all tests of the suite: the stores under test, time, and owners that call a store as an engine does."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any, Final, TypeVar, cast

import pytest

from ...errors import DefinitionError, StoreError
from ...run import StepReport
from ...status import Status
from ...stores.base import (
    Checkpoint,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Lease,
    RunRecord,
    StepRecord,
    Store,
    Write,
)
from .model import Checkpoints, snapshot
from .rules import broken

__all__ = ["LONG", "SHORT", "Owner", "Suite", "done", "gone", "in_flight", "new_id", "wrote"]

LONG: Final = 600.0
"""the seconds of a lease that does not expire during a test"""
SHORT: Final = 0.002
"""the seconds of a lease that expires a moment later"""
A = TypeVar("A", bound=ClaimAnswer)
_numbers = count(1)


def new_id() -> str:
    """Return a unique name, for a run id, a key or a workflow."""
    return f"{time.time_ns():x}{next(_numbers):x}".rjust(32, "0")


class _Loop:
    """An event loop that runs in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="an event loop of StoreConformance")
        self._thread.start()

    def run(self, awaitable: Any) -> Any:
        async def awaiting() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(awaiting(), self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Asked:
    """A sync view of a store. The verbs of an async store run on an event loop that belongs to this view."""

    def __init__(self, store: Any) -> None:
        self.raw = store
        self._loop = _Loop() if inspect.iscoroutinefunction(store.claim) else None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.raw, name)
        if self._loop is None or not callable(value):
            return value
        loop = self._loop

        def ask(*args: Any, **options: Any) -> Any:
            answer = value(*args, **options)
            return loop.run(answer) if inspect.isawaitable(answer) else answer

        return ask

    def leave(self) -> None:
        """Stop the event loop. The store stays open."""
        if self._loop is not None:
            self._loop.close()


def done(result: Any = None, *, effect: bool = True, carrier: Mapping[str, str] | None = None) -> StepRecord:
    """Return the record of a successful step, for a checkpoint."""
    return StepRecord(0, StepReport(Status.SUCCESS, 1), True, result, effect, dict(carrier or {}))


def in_flight(attempt: int = 1) -> StepRecord:
    """Return the record of a step that begins, for a checkpoint."""
    return StepRecord(0, StepReport(Status.RUNNING, attempt))


def wrote(value: Any) -> Write:
    """Return the write of a key of the context, for a checkpoint."""
    return Write(0, value)


def gone() -> Write:
    """Return the deletion of a key of the context, for a checkpoint."""
    return Write(0, deleted=True)


@dataclass
class Refusal:
    """The error that a block inside `Suite.refuses` has raised."""

    error: Exception | None = None


@dataclass
class Owner:
    """The owner of a run. It calls the store as an engine does, and numbers its changes (`seq`) one after the other."""

    suite: Suite
    claim: Claim
    answer: Claimed
    checkpoints: Checkpoints = field(init=False)
    seq: int = field(init=False)

    def __post_init__(self) -> None:
        record = self.answer.record
        if record is None:
            self.checkpoints = Checkpoints(self.claim.values)
            self.checkpoints.take(
                {name: replace(in_flight(), seq=seq) for seq, name in enumerate(self.claim.begins, 1)}, {}
            )
        else:
            self.checkpoints = Checkpoints.of(record)
        self.seq = self.checkpoints.seq if record is None else max(record.seq, self.checkpoints.seq)

    @property
    def key(self) -> str:
        return self.claim.key

    @property
    def run_id(self) -> str:
        """The id of the run; it is not that of the claim if this owner took the run over."""
        return self.claim.run_id if self.answer.record is None else self.answer.record.run_id

    @property
    def fence(self) -> int:
        return self.answer.fence

    @property
    def lease(self) -> Lease:
        return Lease(self.key, self.run_id, self.fence)

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def says(
        self,
        steps: Mapping[str, StepRecord] | None = None,
        writes: Mapping[str, Write] | None = None,
        *,
        lease: float = LONG,
        undoing: bool = False,
        failed_step: str | None = None,
        error: BaseException | None = None,
    ) -> Checkpoint:
        """Return the next checkpoint, its changes numbered in the order given, without sending it."""
        numbered = {name: replace(step, seq=self._next()) for name, step in (steps or {}).items()}
        written = {key: replace(write, seq=self._next()) for key, write in (writes or {}).items()}
        self.checkpoints.take(numbered, written)
        return Checkpoint(
            self.key, self.run_id, self.fence, lease, numbered, written, undoing, failed_step=failed_step, error=error
        )

    def saves(self, *args: Any, **options: Any) -> Checkpoint:
        """Send the next checkpoint, which the store must accept, and return it."""
        checkpoint = self.says(*args, **options)
        answer = self.suite.store.checkpoint(checkpoint)
        assert answer is None, broken("lost", f"the owner's checkpoint got the reply {answer}")  # noqa: S101
        return checkpoint

    def ending(
        self,
        status: Status,
        steps: Mapping[str, StepRecord] | None = None,
        writes: Mapping[str, Write] | None = None,
        *,
        held: bool = False,
        undoing: bool = False,
        undone: tuple[str, ...] = (),
        failed_step: str | None = None,
        error: BaseException | None = None,
    ) -> Ending:
        """Return the end of the run as an engine records it: the whole record, and the changes of no checkpoint yet."""
        changes = self.says(steps, writes) if steps or writes else None
        claim, checkpoints, found = self.claim, self.checkpoints, self.answer.record
        record = RunRecord(
            self.key,
            self.run_id,
            claim.workflow,
            claim.fingerprint if found is None else found.fingerprint,
            claim.graph,
            status=status,
            held=held,
            undoing=undoing,
            generation=self.answer.generation,
            fence=self.fence,
            seq=self.seq,
            results=checkpoints.results,
            values=checkpoints.values,
            steps=checkpoints.reports,
            effects=checkpoints.effects,
            carriers=checkpoints.carriers,
            undone=undone,
            failed_step=failed_step,
            error=error,
            carrier=claim.carrier if found is None else found.carrier,
        )
        return Ending(record, changes)

    def ends(self, *args: Any, **options: Any) -> Ending:
        """Send the end of the run, which the store must accept, and return it."""
        ending = self.ending(*args, **options)
        answer = self.suite.store.finish(ending)
        assert answer is None, broken("lost", f"the owner's ending got the reply {answer}")  # noqa: S101
        return ending


class Suite:
    """The base class of the tests: the members that users define, and helpers for the tests."""

    examples = 30
    """how many random histories the state machine tries"""
    _patience = 10.0

    def make_store(self) -> Any:
        """Return a store to test, sync or async. It may hold records of earlier tests: each test has its own keys."""
        raise DefinitionError(f"{type(self).__name__} must define make_store(self), which returns the store to test.")

    def open_again(self, store: Any) -> Any:
        """Return another store object on the same data, as a second process has. By default it is the same object."""
        return store

    def make_forgetful_store(self, retention: float) -> Any:
        """Return a store that forgets ended runs after `retention` seconds. By default its tests are skipped."""
        pytest.skip(f"{type(self).__name__} does not define make_forgetful_store(self, retention).")

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass on the clock of the store. By default it sleeps."""
        time.sleep(seconds)

    # -- the stores ----------------------------------------------------------------------------------------------------

    @cached_property
    def _asked(self) -> list[Asked]:
        return []

    def ask(self, raw: Any) -> Store:
        """Return a new sync view of this store. If the store is async, the view has its own event loop."""
        asked = Asked(raw)
        self._asked.append(asked)
        return cast("Store", asked)

    @cached_property
    def store(self) -> Store:
        """The store under test."""
        return self.ask(self.make_store())

    @cached_property
    def other(self) -> Store:
        """Another store object on the same data, if the user defines `open_again`."""
        return self.ask(self.open_again(cast("Asked", self.store).raw))

    def forgetful(self, retention: float) -> Store:
        """Return a store that forgets ended runs after `retention` seconds. It is the store under test from now on."""
        vars(self)["store"] = self.ask(self.make_forgetful_store(retention))
        return self.store

    @pytest.fixture(autouse=True)
    def _stores_are_closed(self) -> Generator[None]:
        yield
        closed: list[Any] = []
        for asked in self._asked:
            if not any(asked.raw is one for one in closed):
                asked.close()
                closed.append(asked.raw)
        for asked in self._asked:
            asked.leave()
        for name in ("store", "other", "_asked"):  # pytest keeps this object until it exits, but need not keep these.
            vars(self).pop(name, None)

    # -- time ----------------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], rule: str, what: str) -> None:
        """Wait until a condition is true. Fails with the rule and `what` if that takes too long."""
        deadline = time.monotonic() + self._patience
        while not condition():
            if time.monotonic() > deadline:
                # Hypothesis now looks for shorter histories with the same failure. They need not wait as long.
                waited, self._patience = self._patience, 0.1
                raise AssertionError(broken(rule, f"{what} within {waited:g} s"))
            self.advance(SHORT)

    def expire(self, owner: Owner) -> None:
        """Shorten the lease of a running run, and wait until it has expired."""
        self.store.renew([owner.lease], SHORT)
        self.expired(owner.key)

    def expired(self, key: str) -> None:
        """Wait until the lease of the run under `key` has expired."""
        self.until(
            lambda: any(record.key == key for record in self.store.list_runs(status="expired", workflow=self.workflow)),
            "time-passes",
            f"list_runs(status='expired') did not list key {key!r}, with a lease of {SHORT} s,",
        )

    # -- claims and records --------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """The default key of this test."""
        return f"key-{new_id()}"

    @cached_property
    def workflow(self) -> str:
        """The name of the workflow of this test."""
        return f"workflow-{new_id()}"

    def request(self, key: str | None = None, **changes: Any) -> Claim:
        """Return a claim for a new run of this test's workflow. `changes` replace fields of the claim."""
        claim = Claim(
            self.key if key is None else key,
            new_id(),
            self.workflow,
            "fingerprint",
            "graph",
            {"traceparent": "00-1-2-01"},
            {"x": 1, "y": "two"},
            LONG,
        )
        return replace(claim, **changes)

    def begin(self, key: str | None = None, **changes: Any) -> Owner:
        """Begin a new run, and return its owner."""
        claim = self.request(key, **changes)
        answer = self.store.claim(claim)
        assert isinstance(answer, Claimed), broken("claim-begins", answer)  # noqa: S101
        assert answer.record is None, broken("claim-begins", answer)  # noqa: S101
        return Owner(self, claim, answer)

    def take_over(self, key: str | None = None, **changes: Any) -> Owner:
        """Take over a run that another owner has left, and return the new owner."""
        claim = self.request(key, **changes)
        answer = self.store.claim(claim)
        assert isinstance(answer, Claimed), broken("claim-takeover", answer)  # noqa: S101
        assert answer.record is not None, broken("claim-takeover", answer)  # noqa: S101
        return Owner(self, claim, answer)

    def refused(self, kind: type[A], rule: str, **changes: Any) -> A:
        """Send a claim that the store must refuse with a reply of class `kind`, and return the reply. The record of
        this test must not change."""
        with self.unchanged():
            answer = self.store.claim(self.request(**changes))
            assert isinstance(answer, kind), broken(rule, f"{answer}, not {kind.__name__}")  # noqa: S101
        return answer

    @contextmanager
    def refuses(self, rule: str, what: str, kind: type[Exception] = StoreError) -> Generator[Refusal]:
        """Check that the block raises an error of class `kind`. The Refusal has the error afterwards."""
        refusal = Refusal()
        try:
            yield refusal
        except kind as error:
            refusal.error = error
            return
        raise AssertionError(broken(rule, f"{what} raised no {kind.__name__}"))

    def record(self, key: str | None = None) -> RunRecord:
        """Return the record under a key, by default that of this test. There must be one."""
        record = self.store.find(self.key if key is None else key)
        assert record is not None, broken("find", f"no record under key {key!r}")  # noqa: S101
        return record

    def is_listed(self, owner: Owner) -> bool:
        """Whether `list_resumable` lists this run."""
        return any(record.run_id == owner.run_id for record in self.store.list_resumable([self.workflow]))

    @contextmanager
    def unchanged(self, rule: str = "nothing-is-written", *, but_lease: bool = False) -> Generator[None]:
        """Check that the block does not change the record of this test; with `but_lease`, its lease may change."""
        before = self._seen(but_lease=but_lease)
        yield
        self.same(self._seen(but_lease=but_lease), before, rule)

    def _seen(self, *, but_lease: bool) -> dict[str, Any]:
        record = self.store.find(self.key)
        seen = {"there": False} if record is None else snapshot(record)
        if but_lease:
            seen.pop("expires", None)
        return seen

    def same(self, seen: Mapping[str, Any], expected: Mapping[str, Any], rule: str) -> None:
        """Check that `seen` has all items of `expected`, and report the first difference."""
        for name in expected:
            detail = f"{name} is {seen.get(name)!r:.500}, not {expected[name]!r:.500}"
            assert seen.get(name) == expected[name], broken(rule, detail)  # noqa: S101
