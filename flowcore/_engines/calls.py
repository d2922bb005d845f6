"""The methods that all engines on event loops share: submitting runs and batches, and reading records."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

from .._kernel.run_state import RunState
from ..errors import RunNotFound
from ..keys import Key
from ..retry import Duration
from ..run import Run
from ..stores.base import Page, RunRecord
from ..workflow import Workflow
from .aio_handles import AsyncRunFuture
from .asking import call_on_loop
from .base import EngineBase, I
from .batches import check_batch, checked_concurrency, completed_on_loop, key_of

__all__ = ["LoopCalls"]

T = TypeVar("T")


class LoopCalls(EngineBase, ABC):
    """An engine on event loops, whose runs are awaited."""

    def submit(
        self,
        workflow: Workflow[I],
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        once: bool = False,
        check: bool = True,
        propagation: Literal["link", "child"] = "link",
    ) -> AsyncRunFuture:
        """Start a run in a task of its own, on the running loop. Awaiting the future raises what `run` raises.

        On a durable store, the run is recorded as queued before this call returns: it survives the process, and any
        engine that recovers may run it. This blocks the loop for one call of the store, and for 0.2 s at most: if the
        store takes longer, this call returns before the run is recorded, and `await future.recorded()` waits for it. (On
        Temporal, this call never waits.) `propagation`: "link" gives the run a trace of its own, linked to the caller's
        trace; "child" makes it a part of the caller's trace. Raises QueueFull if `max_queued` submitted runs have not
        begun, NoThread, NotSerializable, and StoreError if the run could not be recorded.
        """
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, check=check, submitted=True)
        return self._submitted(run, propagation, check=check, records=True)

    def _submitted(
        self, run: RunState, propagation: Literal["link", "child"] = "link", *, check: bool, records: bool = False
    ) -> AsyncRunFuture:
        self._refuse_if_full(self._unbegun())
        self._emit_submitted(run, propagation)
        return self._begin(run, check=check, records=records)

    def map(
        self,
        workflow: Workflow[I],
        items: Iterable[T],
        *,
        values: Callable[[T], I | Mapping[str, Any]] | None = None,
        key: Callable[[T], Key | None] | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        check: bool = False,
    ) -> AsyncGenerator[Run, None]:
        """Run the workflow for each item. Returns an iterator of the Runs, including failed ones, in the order in which
        they end, or with `ordered` in the order of the items.

        `values(item)` and `key(item)` return each run's initial values (default: the item itself) and idempotency key.
        Items are taken lazily, while fewer than `concurrency` (default: `max_workers`) runs are in flight or not yet
        yielded, so memory does not grow with the number of items. `check=True` raises the error of the first failed
        run. With keys on a durable store, a repeated call replays the runs that have ended and resumes the others; for
        a run of another owner, it waits until the outcome is known or the lease of a dead owner has expired. Closing
        the iterator early takes no further item and cancels the runs in flight. Raises DefinitionError for arguments
        with which it could run nothing.
        """

        def submit(item: T) -> AsyncRunFuture:
            made: Any = item if values is None else values(item)
            run = self._requested(workflow, made, key_of(key, item), math.inf, None, submitted=True)
            return self._submitted(run, check=check)

        check_batch(items, values, key, ordered=ordered, check=check)
        return completed_on_loop(items, submit, checked_concurrency(concurrency, self.max_workers), ordered=ordered)

    async def find(self, key: str) -> RunRecord | None:
        """The record of the run with this key, or None. Also finds a run that was submitted here a moment ago. Does not
        block the loop. Raises StoreError."""
        ask, claim = partial(self.store.find, key), self._claim_of(key)
        found: RunRecord | None = await call_on_loop(ask, self._callers_context())
        if found is None and claim is not None:
            await claim.decided()
            found = await call_on_loop(ask, self._callers_context())
        return found

    async def get(self, run_id: str) -> RunRecord:
        """The record of the run with this id. Also finds a run that was submitted here a moment ago. Does not block the
        loop. Raises RunNotFound and StoreError."""
        ask, claim = partial(self.store.get_run, run_id), self._claim_of(run_id)
        try:
            found: RunRecord = await call_on_loop(ask, self._callers_context())
        except RunNotFound:
            if claim is None:
                raise
            await claim.decided()
            found = await call_on_loop(ask, self._callers_context())
        return found

    async def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """A page of the store's runs, as `Engine.list` returns it, without blocking the loop."""
        ask = partial(
            self.store.list_runs,
            status=status,
            workflow=workflow,
            older_than=older_than,
            limit=limit,
            after=after,
            text=text,
        )
        page: Page = await call_on_loop(ask, self._callers_context())
        return page

    def _claim_of(self, name: str) -> AsyncRunFuture | None:
        """The run with this key or id that was submitted on this loop and is not claimed yet, or None. Such a run may
        be missing from the store; it is claimed or refused in a moment."""
        loop = asyncio.get_running_loop()
        mine = (future for future in list(self._unclaimed()) if future.get_loop() is loop)
        return next((future for future in mine if name in {future.key, future.run_id}), None)

    @abstractmethod
    def _unclaimed(self) -> Iterable[AsyncRunFuture]:
        """The submitted runs that may not be in the store yet."""

    @abstractmethod
    def _unbegun(self) -> int:
        """How many submitted runs have not begun."""

    @abstractmethod
    def _begin(self, run: RunState, *, check: bool, records: bool) -> AsyncRunFuture:
        """Begin a submitted run in a separate task. `records`: wait a moment until the store has recorded it."""
