"""What all tests of the suite stand on: the stores under test, time, and owners that speak as an engine does."""

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
from .model import Pieces, snapshot
from .rules import broken

__all__ = ["LONG", "SHORT", "Owner", "Suite", "done", "gone", "in_flight", "new_id", "wrote"]

LONG: Final = 600.0
"""seconds: a lease that does not run out while a test runs"""
SHORT: Final = 0.002
"""seconds: a lease that has run out a moment later"""
A = TypeVar("A", bound=ClaimAnswer)
_numbers = count(1)


def new_id() -> str:
    """A unique name: a run id, a key, the name of a workflow."""
    return f"{time.time_ns():x}{next(_numbers):x}".rjust(32, "0")


class _Loop:
    """An event loop in a thread of its own."""

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
    """A store as a sync one, whatever it is: the verbs of an async one run on an event loop of their own."""

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
        """Stop the loop; the store stays open."""
        if self._loop is not None:
            self._loop.close()


def done(result: Any = None, *, effect: bool = True, carrier: Mapping[str, str] | None = None) -> StepRecord:
    """What a checkpoint says of a step that went well."""
    return StepRecord(0, StepReport(Status.SUCCESS, 1), True, result, effect, dict(carrier or {}))


def in_flight(attempt: int = 1) -> StepRecord:
    """What a checkpoint says of a step that begins."""
    return StepRecord(0, StepReport(Status.RUNNING, attempt))


def wrote(value: Any) -> Write:
    """What a checkpoint says of a key of the context that was set."""
    return Write(0, value)


def gone() -> Write:
    """What a checkpoint says of a key of the context that was deleted."""
    return Write(0, deleted=True)


@dataclass
class Refusal:
    """What something was refused with."""

    error: Exception | None = None


@dataclass
class Owner:
    """An owner: its claim was granted, and it speaks to the store as an engine does: each change with the next number."""

    suite: Suite
    claim: Claim
    answer: Claimed
    pieces: Pieces = field(init=False)
    seq: int = field(init=False)

    def __post_init__(self) -> None:
        record = self.answer.record
        if record is None:
            self.pieces = Pieces(self.claim.values)
            self.pieces.take({name: replace(in_flight(), seq=seq) for seq, name in enumerate(self.claim.begins, 1)}, {})
        else:
            self.pieces = Pieces.of(record)
        self.seq = self.pieces.seq if record is None else max(record.seq, self.pieces.seq)

    @property
    def key(self) -> str:
        return self.claim.key

    @property
    def run_id(self) -> str:
        """The run's, which is another's where this owner took it over."""
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
        """The next checkpoint, numbered in the order given."""
        numbered = {name: replace(step, seq=self._next()) for name, step in (steps or {}).items()}
        written = {key: replace(write, seq=self._next()) for key, write in (writes or {}).items()}
        self.pieces.take(numbered, written)
        return Checkpoint(
            self.key, self.run_id, self.fence, lease, numbered, written, undoing, failed_step=failed_step, error=error
        )

    def saves(self, *args: Any, **options: Any) -> Checkpoint:
        """Say it to the store, which must take it."""
        checkpoint = self.says(*args, **options)
        answer = self.suite.store.checkpoint(checkpoint)
        assert answer is None, broken("lost", f"the owner's checkpoint was answered with {answer}")  # noqa: S101
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
        """The end of the run as an engine records it: the record as a whole, and what no checkpoint has said yet."""
        changes = self.says(steps, writes) if steps or writes else None
        claim, pieces, found = self.claim, self.pieces, self.answer.record
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
            results=pieces.results,
            values=pieces.values,
            steps=pieces.reports,
            effects=pieces.effects,
            carriers=pieces.carriers,
            undone=undone,
            failed_step=failed_step,
            error=error,
            carrier=claim.carrier if found is None else found.carrier,
        )
        return Ending(record, changes)

    def ends(self, *args: Any, **options: Any) -> Ending:
        """Tell the store of the end, which it must take."""
        ending = self.ending(*args, **options)
        answer = self.suite.store.finish(ending)
        assert answer is None, broken("lost", f"the owner's ending was answered with {answer}")  # noqa: S101
        return ending


class Suite:
    """The part of StoreConformance that is no test."""

    examples = 30
    """made-up histories that the state machine goes through"""
    _patience = 10.0

    def make_store(self) -> Any:
        """A store to test, sync or async. It may hold what earlier tests left, as their keys are others."""
        raise DefinitionError(f"{type(self).__name__} must define make_store(self), which answers the store to test.")

    def open_again(self, store: Any) -> Any:
        """Another store object on the data of this one, as a second process has. By default the same object."""
        return store

    def make_forgetful_store(self, retention: float) -> Any:
        """A store that forgets ended runs after so many seconds. By default those tests are skipped."""
        pytest.skip(f"{type(self).__name__} does not define make_forgetful_store(self, retention).")

    def advance(self, seconds: float) -> None:
        """Let so much time pass by the store's clock. By default it is waited for."""
        time.sleep(seconds)

    # -- the stores ----------------------------------------------------------------------------------------------------

    @cached_property
    def _asked(self) -> list[Asked]:
        return []

    def ask(self, raw: Any) -> Store:
        """This store as a sync one; an async one gets one more event loop."""
        asked = Asked(raw)
        self._asked.append(asked)
        return cast("Store", asked)

    @cached_property
    def store(self) -> Store:
        """The store under test."""
        return self.ask(self.make_store())

    @cached_property
    def other(self) -> Store:
        """Another one on the same data."""
        return self.ask(self.open_again(cast("Asked", self.store).raw))

    def forgetful(self, retention: float) -> Store:
        """A store that forgets soon; it is the store under test from now on."""
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
        for name in ("store", "other", "_asked"):  # pytest keeps this object for as long as it runs
            vars(self).pop(name, None)

    # -- time ----------------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], rule: str, what: str) -> None:
        """Wait for a condition to hold."""
        deadline = time.monotonic() + self._patience
        while not condition():
            if time.monotonic() > deadline:
                waited, self._patience = self._patience, 0.1  # Hypothesis looks for a shorter way to the same end
                raise AssertionError(broken(rule, f"{what} within {waited:g} s"))
            self.advance(SHORT)

    def expire(self, owner: Owner) -> None:
        """Have the lease of a running run end."""
        self.store.renew([owner.lease], SHORT)
        self.expired(owner.key)

    def expired(self, key: str) -> None:
        """Wait until a lease has ended."""
        self.until(
            lambda: any(record.key == key for record in self.store.list_runs(status="expired", workflow=self.workflow)),
            "time-passes",
            f"list_runs(status='expired') did not list key {key!r}, with a lease of {SHORT} s,",
        )

    # -- asking --------------------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """The key that a test is about."""
        return f"key-{new_id()}"

    @cached_property
    def workflow(self) -> str:
        """The name of a test's workflow."""
        return f"workflow-{new_id()}"

    def request(self, key: str | None = None, **changes: Any) -> Claim:
        """A claim, of a new run of this test's workflow unless said otherwise."""
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
        """The owner of a new run."""
        claim = self.request(key, **changes)
        answer = self.store.claim(claim)
        assert isinstance(answer, Claimed), broken("claim-begins", answer)  # noqa: S101
        assert answer.record is None, broken("claim-begins", answer)  # noqa: S101
        return Owner(self, claim, answer)

    def take_over(self, key: str | None = None, **changes: Any) -> Owner:
        """The owner of a run that another has left."""
        claim = self.request(key, **changes)
        answer = self.store.claim(claim)
        assert isinstance(answer, Claimed), broken("claim-takeover", answer)  # noqa: S101
        assert answer.record is not None, broken("claim-takeover", answer)  # noqa: S101
        return Owner(self, claim, answer)

    def refused(self, kind: type[A], rule: str, **changes: Any) -> A:
        """What a claim is answered that must not be granted, but answered with this kind; nothing may change by it."""
        with self.unchanged():
            answer = self.store.claim(self.request(**changes))
            assert isinstance(answer, kind), broken(rule, f"{answer}, not {kind.__name__}")  # noqa: S101
        return answer

    @contextmanager
    def refuses(self, rule: str, what: str, kind: type[Exception] = StoreError) -> Generator[Refusal]:
        """Whatever is done inside must raise this."""
        refusal = Refusal()
        try:
            yield refusal
        except kind as error:
            refusal.error = error
            return
        raise AssertionError(broken(rule, f"{what} raised no {kind.__name__}"))

    def record(self, key: str | None = None) -> RunRecord:
        """What the store has under a key, where there must be something."""
        record = self.store.find(self.key if key is None else key)
        assert record is not None, broken("find", f"no record under key {key!r}")  # noqa: S101
        return record

    def is_listed(self, owner: Owner) -> bool:
        """Whether `list_resumable` lists this run."""
        return any(record.run_id == owner.run_id for record in self.store.list_resumable([self.workflow]))

    @contextmanager
    def unchanged(self, rule: str = "nothing-is-written", *, but_lease: bool = False) -> Generator[None]:
        """Whatever is done inside must leave this test's record as it was."""
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
        """Compare what is in both, and report the first difference."""
        for name in expected:
            detail = f"{name} is {seen.get(name)!r:.500}, not {expected[name]!r:.500}"
            assert seen.get(name) == expected[name], broken(rule, detail)  # noqa: S101
