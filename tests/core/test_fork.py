"""A process that forks after its engines have begun: parent and child go on, each with threads of its own."""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, MemoryStore, Status, Workflow
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, Gate, Ledger, until


def in_a_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_engine_continues_in_the_child_of_a_fork(ledger: Ledger) -> None:
    wf = Workflow("forked")
    wf.add_step("a", lambda ctx: "a", timeout=PATIENCE)
    with Engine() as engine:
        assert engine.submit(wf).result(PATIENCE).status is Status.SUCCESS  # its threads and its clock have begun

        def child() -> None:
            assert engine.submit(wf).result(PATIENCE).status is Status.SUCCESS
            assert engine.run(wf).status is Status.SUCCESS
            engine.close()

        assert in_a_child(child) == 0
        assert engine.run(wf).status is Status.SUCCESS


def test_a_child_does_not_wait_for_its_parents_runs_to_close() -> None:
    began, end, wf = threading.Event(), threading.Event(), Workflow("busy")

    def busy(_: Context) -> None:
        began.set()
        end.wait(PATIENCE)

    wf.add_step("a", busy)
    with Engine() as engine:
        future = engine.submit(wf)
        began.wait(PATIENCE)
        assert in_a_child(lambda: engine.close(timeout=0)) == 0
        end.set()
        assert future.result(PATIENCE).status is Status.SUCCESS


def test_queued_runs_of_the_parent_take_no_place_in_the_queue_of_a_child(gate: Gate) -> None:
    wf, idle, began = Workflow("busy"), Workflow("idle"), Gate()
    wf.add_step("a", began.then(gate))
    with Engine(max_workers=1, max_queued=1) as engine:
        engine.submit(wf)
        began.wait()
        engine.submit(wf)
        idle.add_step("a", lambda ctx: 1)
        assert in_a_child(lambda: engine.submit(idle).result(PATIENCE)) == 0
        gate.set()


def test_a_child_looks_once_more_for_runs_to_resume_though_its_parent_has_planned_to(tmp_path: Path) -> None:
    """The parent's timer is not in the child."""
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1)
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store, workflows=[wf], lease=0.5) as engine:
        engine.recover()
        assert engine._looks_again

        def child() -> None:
            assert not engine._looks_again
            engine.recover()
            assert engine._looks_again

        assert in_a_child(child) == 0


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)])
@pytest.mark.parametrize("fork_in", ["a", "b"])
@pytest.mark.parametrize("leave", [sys.exit, lambda: None, lambda: 1 / 0])
def test_a_child_that_comes_back_out_of_a_step_does_nothing_more_of_its_parents_run(
    leave: Callable[[], None], fork_in: str, hooks: Any, tmp_path: Path
) -> None:
    ledger, parent = tmp_path / "ledger", os.getpid()

    def wrote(what: str) -> None:
        with ledger.open("a") as file:
            file.write(f"{what} {'parent' if os.getpid() == parent else 'child'}\n")

    def step(name: str) -> Callable[[Context], None]:
        def do(_: Context) -> None:
            if name == fork_in:
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                else:
                    leave()
            if os.getpid() == parent or name != fork_in:
                wrote(name)
            if name == "c":
                raise ZeroDivisionError

        return do

    wf = Workflow("forks")
    for name, before in (("a", ()), ("b", "a"), ("c", "b")):
        wf.add_step(name, step(name), depends_on=before, compensate=lambda ctx: wrote(f"-{ctx.step}"))
    try:
        with Engine(hooks=hooks) as engine:
            run = engine.run(wf, check=False)
    except BaseException:
        if os.getpid() == parent:
            raise
        os._exit(0)
    if os.getpid() != parent:
        os._exit(0)
    assert run.status is Status.COMPENSATED
    assert ledger.read_text().split("\n")[:-1] == [f"{what} parent" for what in ["a", "b", "c", "-b", "-a"]]


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)])
def test_a_run_of_an_asyncengine_is_its_parents_too(hooks: Any) -> None:
    """The child ends here: a loop that was forked is of no use to asyncio."""
    exits: list[int] = []

    async def forks(ctx: Context) -> None:
        await asyncio.sleep(0.001)  # from here on its driver is known

        def cancelled_here() -> None:
            assert ctx.cancelled

        exits.append(in_a_child(cancelled_here))
        assert not ctx.cancelled

    wf = Workflow("forks")
    wf.add_step("forks", forks)
    assert asyncio.run(AsyncEngine(hooks=hooks).run(wf)).status is Status.SUCCESS
    assert exits == [0]


@pytest.mark.parametrize("make", [MemoryStore, lambda: Workflow("locked")], ids=["store", "workflow"])
def test_a_fork_waits_for_a_thread_that_has_a_lock(make: Callable[[], Any]) -> None:
    lock, locked = make()._lock, threading.Event()

    def hold_it() -> None:
        with lock:
            locked.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold_it)
    thread.start()
    locked.wait(PATIENCE)

    def child() -> None:
        assert lock.acquire(timeout=1)

    assert in_a_child(child) == 0
    thread.join(PATIENCE)
    assert lock.acquire(timeout=PATIENCE), "the parent has it back"


@pytest.mark.parametrize("strict", [False, True])
def test_a_run_of_the_parent_in_memory_does_not_keep_its_key_from_the_child(strict: bool) -> None:
    busy, asking, empty, gate, began = Workflow("busy"), Workflow("asking"), Workflow("over"), Gate(), Gate()
    busy.add_step("a", began.then(gate))
    asking.wait("answer", timeout=3600)
    store = MemoryStore(strict=strict)
    with Engine(store=store) as engine:
        over = engine.run(empty, idempotency_key="over")
        futures = [engine.submit(busy, idempotency_key="busy"), engine.submit(asking, idempotency_key="asking")]
        began.wait()
        until(lambda: store.list_runs(workflow="asking", status="waiting" if strict else "running"))

        def child() -> None:
            gate.set()
            assert engine.run(busy, idempotency_key="busy").status is Status.SUCCESS
            assert store.find("asking") is None
            assert engine.run(empty, idempotency_key="over").id == over.id

        assert in_a_child(child) == 0
        gate.set()
        engine.send("asking", "answer", 1)
        assert [future.result(PATIENCE).status for future in futures] == [Status.SUCCESS] * 2
