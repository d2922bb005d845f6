"""A `values=` that takes long: it delays its own schedule only, and keeps no engine from closing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, Workflow
from flowcore.stores import SQLiteStore
from tests.core.conftest import PATIENCE
from tests.schedules.test_engines import EVERY, noting, scheduling
from tests.stores.redis_servers import until


class SlowValues:
    """A `values=` that returns when `end` is set."""

    def __init__(self) -> None:
        self.called: list[datetime] = []
        self.end = threading.Event()

    def __call__(self, planned: datetime) -> dict[str, Any]:
        self.called.append(planned)
        self.end.wait(PATIENCE)
        return {"day": planned}


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_slow_values_delay_only_their_own_schedule(driver: str, tmp_path: Path) -> None:
    slow, seen = Workflow("slow"), list[Any]()
    other, others = noting()
    values = SlowValues()

    def note(ctx: Context) -> None:
        seen.append((ctx.scheduled_at, ctx["day"]))

    slow.add_step("note", note)

    def add(engine: Any) -> None:
        engine.schedule(slow, every=EVERY, values=values)
        engine.schedule(other, every=EVERY)

    with (
        closing(SQLiteStore(tmp_path / "runs.db", durability="normal")) as store,
        scheduling(driver, store, add),
    ):
        until(lambda: values.called, "the call of values=")
        count = len(others)
        until(lambda: len(others) > count, "a fire of the other schedule")
        assert seen == []
        values.end.set()
        until(lambda: seen, "the fire whose values took long")
    assert values.called[:1] == [seen[0][0]], "it is called once, and its fire comes first"
    assert all(fire == day for fire, day in seen)


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError()], ids=repr)
def test_an_exit_in_values_skips_the_fire_and_reaches_nothing_else(
    driver: str, raised: BaseException, tmp_path: Path
) -> None:
    exits, planned = Workflow("exits"), list[datetime]()
    other, others = noting()

    def values(at: datetime) -> dict[str, Any]:
        planned.append(at)
        raise raised

    def add(engine: Any) -> None:
        engine.schedule(exits, every=EVERY, values=values)
        engine.schedule(other, every=EVERY)

    reason = f"skipped: values= of schedule 'exits' raised {type(raised).__name__}: {raised}"
    with (
        closing(SQLiteStore(tmp_path / "runs.db", durability="normal")) as store,
        scheduling(driver, store, add),
    ):
        until(lambda: reason in {head.reason for head in store.list_runs()}, "the record of the skipped fire")
        count = len(others)
        until(lambda: len(others) > count, "a fire of the other schedule")
    assert len(planned) > 1


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_an_engine_closes_though_a_values_function_never_returns(driver: str) -> None:
    wf, seen = noting()
    values = SlowValues()
    with scheduling(driver, None, lambda engine: engine.schedule(wf, every=EVERY, values=values)):
        until(lambda: values.called, "the call of values=")
    assert not values.end.is_set()
    values.end.set()
    assert seen == []


def test_a_child_calls_the_values_of_a_fire_again() -> None:
    wf, seen = noting()
    values = SlowValues()
    with Engine() as engine:
        engine.schedule(wf, every=EVERY, values=values)
        until(lambda: values.called, "the call of values=")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                values.end = threading.Event()  # a thread of the parent waits for the other one
                values.end.set()
                until(lambda: seen, "a fire in the child")
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        values.end.set()
