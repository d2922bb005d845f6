"""What the thread that renews the leases of an engine does, and what its hooks hear."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, StoreUnavailable, Workflow
from flowcore.events import LeaseLost, MaintenanceFinished, MaintenanceStarted
from flowcore.retry import CENTURY
from flowcore.stores.base import Renewal, RunRecord
from tests.durable.test_programs import Moody, of_type, until
from tests.durable.test_recovery import one_step


def test_a_run_that_ended_while_its_lease_was_renewed_is_not_lost() -> None:
    store, events, begun, over = Moody(), list[Any](), threading.Event(), threading.Event()

    def lost(verb: str, argument: Any) -> Any:
        if verb != "renew":
            return None
        begun.set()
        over.wait(20)
        return [Renewal.LOST for _ in argument]

    store.moods = lost
    wf = one_step(lambda ctx: begun.wait(20))
    with Engine(store=store, lease=0.1, hooks=[events.append]) as engine:
        assert engine.run(wf, idempotency_key="k").status == "success"
        over.set()
        until(lambda: of_type(events, MaintenanceFinished))
    assert of_type(events, LeaseLost) == []


def test_what_a_hook_enters_for_a_renewal_is_left_after_it() -> None:
    seen, renewed = list[str](), threading.Event()

    class Traces:
        def __call__(self, event: Any) -> Any:
            if isinstance(event, MaintenanceStarted) and event.kind == "heartbeat":
                return self.span()
            if isinstance(event, MaintenanceFinished) and event.kind == "heartbeat":
                seen.append("finished")
            return None

        @contextlib.contextmanager
        def span(self) -> Iterator[None]:
            seen.append("entered")
            yield
            seen.append("left")
            renewed.set()

    wf = one_step(lambda ctx: renewed.wait(20))
    with Engine(store=Moody(), lease=0.1, hooks=[Traces()]) as engine:
        assert engine.run(wf, idempotency_key="k")["a"] is True
    assert seen[:3] == ["entered", "finished", "left"]


def test_every_lease_is_extended_before_the_values_that_were_sent_are_read() -> None:
    """Reading them may take long, and a run stops itself when it believes that its lease is over."""
    extended, over = list[bool](), threading.Event()
    before: dict[Any, float] = {}

    class Reads(Moody):
        def find(self, key: str, /) -> RunRecord | None:
            if before and not over.is_set():
                extended.append(all(run.ledger.lease_until > until for run, until in before.items()))
                over.set()
            return super().find(key)

    def sent(verb: str, argument: Any) -> Any:
        if verb != "renew" or len(argument) < 3 or before:
            return None
        before.update({run: run.ledger.lease_until for run in engine._live})
        return [Renewal.SENT for _ in argument]

    store = Reads()
    store.moods = sent
    wf = one_step(lambda ctx: over.wait(20))
    with Engine(store=store, lease=0.3) as engine:
        runs = [engine.submit(wf, idempotency_key=str(number)) for number in range(3)]
        assert [run.result(20)["a"] for run in runs] == [True] * 3
    assert extended == [True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lease_thread_that_an_error_has_ended_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, renewed = Moody(), threading.Event()
    wf = one_step(lambda ctx: renewed.wait(20))

    def dies(*_: object) -> bool:
        raise SystemError("out of luck")

    with Engine(store=store, lease=0.3) as engine:
        leases = engine._runs.leases
        assert leases is not None
        with monkeypatch.context() as patched:
            patched.setattr(leases, "_renew", dies)
            ending = engine.submit(wf, idempotency_key="first")
            until(lambda: leases._thread is not None and not leases._thread.is_alive())
        store.moods = lambda verb, argument: renewed.set() if verb == "renew" else None
        assert engine.run(wf, idempotency_key="second")["a"] is True
        assert ending.result(20)["a"] is True


@pytest.mark.parametrize("engine_type", [Engine, AsyncEngine])
@pytest.mark.parametrize("lease", [sys.maxsize, 1e300, timedelta.max], ids=["maxsize", "1e300", "timedelta.max"])
def test_a_lease_that_no_timer_can_hold_is_one_of_a_century(lease: Any, engine_type: Any) -> None:
    """An error in the thread fails the test."""
    threads, others = list[threading.Thread](), set(threading.enumerate())

    def watch(ctx: Context) -> None:
        mine = set(threading.enumerate()) - others
        threads.extend(one for one in mine if one.name == "flowcore-leases")

    async def main() -> None:
        async with AsyncEngine(store=Moody(), lease=lease, recover_every=lease, workflows=[wf]) as engine:
            assert (engine.lease, engine.recover_every) == (CENTURY, CENTURY)
            await engine.run(wf, idempotency_key="k")

    wf = one_step(watch)
    if engine_type is AsyncEngine:
        asyncio.run(main())
    else:
        with Engine(store=Moody(), lease=lease, recover_every=lease, workflows=[wf]) as engine:
            assert (engine.lease, engine.recover_every) == (CENTURY, CENTURY)
            engine.run(wf, idempotency_key="k")
    (thread,) = threads
    thread.join(20)
    assert not thread.is_alive()


class Keeps(Moody):
    """A store whose renewals fail, so that only checkpoints renew a lease."""

    def __init__(self) -> None:
        super().__init__()
        self.renewing: list[bool] = []
        self.moods = self.mood

    def mood(self, verb: str, argument: Any) -> Any:
        if verb == "renew":
            raise StoreUnavailable("no renewal")
        if verb == "checkpoint":
            self.renewing.append(argument.renews)


def chain(fn: Any, hooked: bool) -> tuple[Workflow, list[Any]]:
    wf = Workflow("chain")
    first = wf.step(name="a")(fn)
    second = wf.step(name="b", depends_on=first)(fn)
    wf.step(name="c", depends_on=second)(fn)
    return wf, [lambda event: None] if hooked else []


@pytest.mark.parametrize("hooked", [False, True])  # without hooks, plain steps are saved by fast checkpoints
def test_checkpoints_renew_no_lease_that_was_renewed_a_short_while_ago(hooked: bool) -> None:
    store = Keeps()
    wf, hooks = chain(lambda ctx: 1, hooked)
    with Engine(store=store, lease=3600, hooks=hooks) as engine:
        assert engine.run(wf, idempotency_key="k").status == "success"
    assert store.renewing == [False, False]


@pytest.mark.parametrize("hooked", [False, True])
def test_checkpoints_renew_a_lease_of_which_a_quarter_is_over(hooked: bool) -> None:
    store = Keeps()
    wf, hooks = chain(lambda ctx: time.sleep(0.11), hooked)
    with Engine(store=store, lease=0.4, hooks=hooks) as engine:
        assert engine.run(wf, idempotency_key="k").status == "success"
    assert len(store.renewing) >= 2
    assert all(store.renewing)
