"""Rounds of recovery: the look after the leases, many pages of runs, and runs that cannot be resumed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import pytest

from flowcore import AsyncEngine, Engine, StoreUnavailable, Workflow
from flowcore._durable import recovery
from flowcore._engines.asking import make_calls
from flowcore.stores.base import Claim, Page
from flowcore.testing import SimulatedStore
from tests.durable.test_programs import Moody, until
from tests.durable.test_recovery import crashed, one_step


class EmptyAtFirst(SimulatedStore):
    """Its first list is empty, as it is while the lease of a crashed owner lasts. `second` is called before the next one."""

    def __init__(self, second: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.lists = 0
        self._second = second

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        self.lists += 1
        if self.lists == 1:
            return Page([], None)
        self._second()
        return super().list_resumable(workflows, limit=limit, after=after)


def recovered(engines: str, store: Any, wf: Workflow, over: Callable[[], Any]) -> None:
    """Call `recover()`, which resumes nothing yet, and keep the engine open until `over`."""
    options: dict[str, Any] = {"store": store, "workflows": [wf], "lease": 0.1}

    async def main() -> None:
        async with AsyncEngine(**options) as engine:
            assert await engine.recover() == []
            while not over():  # noqa: ASYNC110 - what ends it is in the store
                await asyncio.sleep(0.001)

    if engines == "asyncio":
        asyncio.run(asyncio.wait_for(main(), 20))
        return
    with Engine(**options) as engine:
        assert engine.recover() == []
        until(over)


@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_recover_looks_again_by_itself_once_the_lease_of_a_crashed_owner_is_over(engines: str) -> None:
    store, wf = EmptyAtFirst(), one_step()
    crashed(store, wf, "k")
    recovered(engines, store, wf, lambda: store.find("k").status == "success")
    assert store.find("k").results == {"a": "a"}


def test_an_async_engine_made_on_a_loop_recovers_before_its_first_run() -> None:
    store, wf = SimulatedStore(), one_step()
    crashed(store, wf, "k")

    async def main() -> None:
        engine = AsyncEngine(store=store, workflows=[wf], lease=0.1, recover_every=0.01)
        while store.find("k").status != "success":  # noqa: ASYNC110 - what ends it is in the store
            await asyncio.sleep(0.001)
        await engine.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_a_second_look_that_fails_is_logged(engines: str, caplog: pytest.LogCaptureFixture) -> None:
    def away() -> None:
        raise StoreUnavailable("away")

    store, wf = EmptyAtFirst(away), one_step()
    with caplog.at_level(logging.WARNING, "flowcore"):
        recovered(engines, store, wf, lambda: [entry for entry in caplog.records if "recovery round" in entry.message])
    assert "a recovery round failed: StoreUnavailable: away" in [entry.message for entry in caplog.records]


class Panic(BaseException):
    """Clients that are written in Rust raise such an error."""


@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError, StopIteration, Panic])
@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_rounds_survive_whatever_a_store_raises(engines: str, error: type[BaseException]) -> None:
    """A client of a store may raise CancelledError because one of its tasks was cancelled."""

    def fails() -> None:
        if store.lists == 2:
            raise error

    store, wf = EmptyAtFirst(fails), one_step()
    crashed(store, wf, "k")
    options: dict[str, Any] = {"store": store, "workflows": [wf], "recover_every": 0.01}

    async def main() -> None:
        async with AsyncEngine(**options):
            while store.find("k").status != "success":  # noqa: ASYNC110 - what ends it is in the store
                await asyncio.sleep(0.001)

    if engines == "asyncio":
        asyncio.run(asyncio.wait_for(main(), 20))
        return
    with Engine(**options):
        until(lambda: store.find("k").status == "success")


def test_an_engine_without_workflows_recovers_nothing() -> None:
    store = SimulatedStore()
    crashed(store, one_step(), "k")
    with Engine(store=store) as engine:
        assert engine.recover() == []


def test_runs_on_later_pages_are_recovered() -> None:
    store, wf = SimulatedStore(), one_step()
    for number in range(150):
        crashed(store, wf, str(number))
    with Engine(store=store, workflows=[wf]) as engine:
        assert len(engine.recover()) == 150


class TestARunThatCannotBeResumed:
    def test_keeps_no_other_run_from_being_resumed(self, caplog: pytest.LogCaptureFixture) -> None:
        store, wf = SimulatedStore(), one_step()
        crashed(store, wf, "")  # no engine accepts this key
        crashed(store, wf, "k")
        with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=store, workflows=[wf]) as engine:
            assert [run.status for run in engine.recover()] == ["success"]
        (line,) = [entry.message for entry in caplog.records]
        assert line.startswith(f"run {'00'.rjust(32, '0')} of 'order' cannot be recovered: ")

    def test_is_logged_once_and_put_off(self, caplog: pytest.LogCaptureFixture) -> None:
        store, wf = Moody(), one_step()
        crashed(store, wf, "k")
        store.moods = refuse_claims
        with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=store, workflows=[wf]) as engine:
            assert engine.recover() == engine.recover() == []
        assert [entry.message for entry in caplog.records] == [
            f"run {'k0'.rjust(32, '0')} of 'order' cannot be recovered: ValueError: no such claim"
        ]
        assert store.asked.count("claim") == 2  # that of the owner that crashed, and one more

    def test_is_tried_again_at_once_if_there_are_too_many_to_remember(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recovery, "_REMEMBERED", 1)
        store, wf = Moody(), one_step()
        for key in ("x", "y"):
            crashed(store, wf, key)
        store.moods = refuse_claims
        with Engine(store=store, workflows=[wf]) as engine:
            engine.recover()
            asked = store.asked.count("claim")
            engine.recover()
        assert store.asked.count("claim") > asked

    def test_is_not_logged_once_many_were(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recovery, "_LOGGED", 2)
        store, wf = Moody(), one_step()
        for key in ("x", "y", "z"):
            crashed(store, wf, key)
        store.moods = refuse_claims
        with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=store, workflows=[wf]) as engine:
            engine.recover()
        *lines, last = [entry.message for entry in caplog.records]
        assert [line.partition(" cannot ")[2] for line in lines] == ["be recovered: ValueError: no such claim"] * 2
        assert last == "recovery has logged 2 such lines, and logs no more of them"


def recover(engines: str, **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with AsyncEngine(**options) as engine:
            return await engine.recover()

    if engines == "asyncio":
        return asyncio.run(main())
    with Engine(**options) as engine:
        return engine.recover()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a round choose from two runs, and an engine remember one that failed."""
    for name, number in (("_WINDOW", 2), ("_PAGE", 2), ("_REMEMBERED", 1)):
        monkeypatch.setattr(recovery, name, number)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_many_runs_of_another_definition_hide_no_other_run_and_are_logged_once(
    engines: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, earlier, wf = SimulatedStore(), one_step(), one_step()
    earlier.add_step("gone", lambda ctx: None)
    for number in range(5):
        crashed(store, earlier, f"earlier {number}")
    crashed(store, wf, "k")
    with caplog.at_level(logging.WARNING, "flowcore"):
        (run,) = recover(engines, store=store, workflows=[wf])
    assert run.status == store.find("k").status == "success"
    (line,) = [entry.message for entry in caplog.records]
    assert "a different step graph (step 'gone' is missing)" in line


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_many_runs_whose_claims_fail_hide_no_other_run(engines: str) -> None:
    store, wf = Moody(), one_step()
    for key in ("a", "b", "c", "d", "e", "k"):
        crashed(store, wf, key)
    store.moods = lambda verb, argument: (
        refuse_claims(verb, argument) if isinstance(argument, Claim) and argument.key != "k" else None
    )
    (run,) = recover(engines, store=store, workflows=[wf], recover_at_once=1)
    assert run.status == store.find("k").status == "success"
    assert store.asked.count("claim") == 6 + 6  # those of the owners that crashed, and one more for each run


def refuse_claims(verb: str, argument: Any) -> None:
    if verb == "claim":
        raise ValueError("no such claim")


class Resumed:
    """A run that a round starts, as far as recovery looks at it."""

    limit = 1
    claimed = True

    def __init__(self, run_id: str) -> None:
        self.request = SimpleNamespace(recovering=run_id)


def test_a_store_that_lists_slowly_is_listed_again_after_ten_times_as_long() -> None:
    now = [0.0]

    class Slow(EmptyAtFirst):
        def list_resumable(self, workflows: Collection[str], /, **options: Any) -> Page:
            now[0] += 2
            return super().list_resumable(workflows, **options)

    store, wf = Slow(), one_step()
    store.lists = 1
    for number in range(9):
        crashed(store, wf, f"k{number}")
    with Engine(store=store) as engine:
        settings = engine._settings
    settings.clock = lambda: now[0]
    found = recovery.Recovery(settings, [wf], list, at_once=1)
    started: list[Any] = []

    def resume(workflow: Workflow[Any], key: str, run_id: str) -> Any:
        return Resumed(run_id)

    for moment, lists in ((0.0, 2), (19.0, 2), (21.0, 3), (40.0, 3)):
        now[0] = moment
        make_calls(found.round(resume, started.append), contextvars.copy_context())
        found.ended(started[-1], None)
        assert store.lists == lists, moment
    assert len(started) == 4
