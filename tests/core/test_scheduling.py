"""Scheduling (semantics 1): a ready queue, ties in definition order, frozen definitions."""

import asyncio
import itertools
import threading

import pytest
from hypothesis import given, strategies as st

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    DefinitionError,
    DependencyCycle,
    Engine,
    Retry,
    Run,
    Status,
    UnknownDependency,
    Workflow,
)

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, run_async


def test_steps_run_after_what_they_depend_on(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("diamond")
    a = ledger.add(wf, "a")
    b = ledger.add(wf, "b", depends_on=a)
    c = ledger.add(wf, "c", depends_on=a)
    ledger.add(wf, "d", depends_on=[b, c])
    assert drive(wf).status is Status.SUCCESS
    assert (ledger[0], set(ledger[1:3]), ledger[3]) == ("a", {"b", "c"}, "d")


def test_ties_start_in_definition_order(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("fan", max_parallel=1)
    for name in "cab":
        ledger.add(wf, name)
    drive(wf)
    assert ledger == ["c", "a", "b"]


def test_a_step_starts_as_soon_as_its_own_dependencies_are_done(live: MakeLive, gate: Gate) -> None:
    # A barrier per layer would make `after` wait for `slow`, which waits for it.
    wf = Workflow("no barrier")
    wf.add_step("slow", gate)
    quick = wf.add_step("quick", lambda ctx: 1)
    wf.add_step("after", lambda ctx: gate.set(), depends_on=quick)
    assert live().run(wf).status is Status.SUCCESS


def test_a_dependency_may_be_a_step_a_name_or_several(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("names")
    ledger.add(wf, "last", depends_on=("first", "second"))
    first = ledger.add(wf, "first", depends_on=())
    ledger.add(wf, "second", depends_on=[first, "first"])
    drive(wf)
    assert ledger == ["first", "second", "last"]


def test_an_empty_workflow_succeeds(drive: Drive) -> None:
    run = drive(Workflow("nothing"))
    assert (run.status, run.results, run.steps) == (Status.SUCCESS, {}, {})


def test_a_definition_is_frozen_by_its_first_run(drive: Drive) -> None:
    wf = Workflow("frozen")
    step = wf.add_step("a", lambda ctx: 1)
    drive(wf)
    with pytest.raises(DefinitionError, match="cannot add step 'b': workflow 'frozen' has run"):
        wf.add_step("b", lambda ctx: 1)
    with pytest.raises(DefinitionError, match="cannot give step 'a' an undo"):
        step.compensate(lambda ctx: None)


def test_looking_at_a_definition_does_not_freeze_it() -> None:
    wf = Workflow("looked at")
    wf.add_step("a", lambda ctx: 1)
    assert [[step.name for step in layer] for layer in wf.layers()] == [["a"]]
    wf.add_step("b", lambda ctx: 1, depends_on="a")
    assert [[step.name for step in layer] for layer in wf.layers()] == [["a"], ["b"]]


def test_an_unknown_dependency_is_refused_before_anything_runs(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("unknown")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="typo")
    with pytest.raises(UnknownDependency, match="step 'b' depends on 'typo'"):
        drive(wf)
    assert ledger == []


def test_a_cycle_is_refused_with_its_path(drive: Drive) -> None:
    wf = Workflow("cycle")
    wf.add_step("a", lambda ctx: 1, depends_on="c")
    wf.add_step("b", lambda ctx: 1, depends_on="a")
    wf.add_step("c", lambda ctx: 1, depends_on="b")
    with pytest.raises(DependencyCycle) as caught:
        drive(wf)
    path = str(caught.value).removeprefix("Dependency cycle: ").removesuffix(".").split(" -> ")
    assert path[0] == path[-1]
    depends = {"'a'": "'c'", "'b'": "'a'", "'c'": "'b'"}
    assert all(depends[one] == other for one, other in itertools.pairwise(path))


def test_a_step_that_depends_on_itself_is_a_cycle() -> None:
    wf = Workflow("self")
    wf.add_step("a", lambda ctx: 1, depends_on="a")
    with pytest.raises(DependencyCycle, match="'a' -> 'a'"):
        wf.layers()


def test_a_long_cycle_is_reported_in_short() -> None:
    wf = Workflow("ring")
    for number in range(100):
        wf.add_step(f"s{number}", lambda ctx: 1, depends_on=f"s{(number + 1) % 100}")
    with pytest.raises(DependencyCycle, match="more") as caught:
        wf.layers()
    assert len(str(caught.value)) < 1000


def test_a_chain_on_engine_never_leaves_the_callers_thread() -> None:
    wf = Workflow("chain")
    seen: list[threading.Thread] = []
    for number in range(5):
        wf.add_step(
            f"s{number}",
            lambda ctx: seen.append(threading.current_thread()),
            depends_on=f"s{number - 1}" if number else (),
        )
    with Engine() as engine:
        engine.run(wf)
    assert set(seen) == {threading.current_thread()}


def test_a_fan_behind_a_first_step_runs_side_by_side(live: MakeLive, ledger: Ledger) -> None:
    wf, one, other = Workflow("fan"), Gate(), Gate()
    ledger.add(wf, "first")
    ledger.add(wf, "one", depends_on="first", first=one.then(other))
    ledger.add(wf, "other", depends_on="first", first=other.then(one))
    live().run(wf)
    assert sorted(ledger) == ["first", "one", "other"]


def test_the_caller_takes_what_is_ready_while_a_step_backs_off_and_every_worker_is_busy(
    ledger: Ledger, gate: Gate
) -> None:
    def flaky(ctx: Context) -> None:
        ledger.append(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError

    wf, other, began, both_began = Workflow("w"), Workflow("other"), Gate(), Gate()
    wf.add_step("flaky", flaky, retry=Retry(2, Backoff.fixed(0.2)))
    ledger.add(wf, "beside")
    other.add_step("holds a worker", began.then(gate))
    other.add_step("holds the other", both_began.then(gate))
    with Engine(max_workers=2) as engine:
        future = engine.submit(other)
        began.wait()
        both_began.wait()
        engine.run(wf)
        gate.set()
        future.result(PATIENCE)
    assert ledger == ["attempt 1", "beside", "attempt 2"]


def test_a_chain_on_asyncengine_never_leaves_the_callers_task() -> None:
    async def main() -> None:
        wf = Workflow("chain")
        tasks: list[object] = []

        async def step(ctx: Context) -> None:
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0)
            tasks.append(asyncio.current_task())

        for number in range(4):
            wf.add_step(f"s{number}", step, depends_on=f"s{number - 1}" if number else ())
        async with AsyncEngine() as engine:
            await engine.run(wf)
        assert set(tasks) == {asyncio.current_task()}

    run_async(main)


def test_max_parallel_limits_the_steps_of_one_run(live: MakeLive) -> None:
    wf = Workflow("limited", max_parallel=2)
    lock = threading.Lock()
    now, most = 0, 0

    def step(ctx: Context) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.002)
        with lock:
            now -= 1

    for number in range(8):
        wf.add_step(str(number), step)
    live(max_workers=8).run(wf)
    assert most == 2


def test_as_many_steps_as_there_are_workers_run_at_once(live: MakeLive) -> None:
    wf = Workflow("wide")
    barrier = threading.Barrier(6)
    for number in range(6):
        wf.add_step(str(number), lambda ctx: barrier.wait(20))
    assert live(max_workers=6).run(wf).status is Status.SUCCESS


def test_max_workers_one_runs_everything_in_order(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("one worker")
    for name in "abc":
        ledger.add(wf, name)
    ledger.add(wf, "d", depends_on="b")
    drive(wf, max_workers=1)
    assert ledger == ["a", "b", "c", "d"]


def test_the_same_workflow_runs_again_and_again_with_fresh_values(drive: Drive) -> None:
    wf = Workflow("again")
    wf.add_step("count", lambda ctx: ctx.setdefault("n", ctx["start"]) + 1)
    assert [drive(wf, {"start": start})["count"] for start in range(3)] == [1, 2, 3]


def test_an_unknown_step_name_is_no_result(drive: Drive) -> None:
    run = drive(Workflow("w"))
    with pytest.raises(KeyError, match="has no step 'nope'"):
        run["nope"]


graphs = st.integers(1, 9).flatmap(
    lambda size: st.tuples(
        *(
            st.sets(st.integers(0, number - 1), max_size=number) if number else st.just(set[int]())
            for number in range(size)
        )
    )
)


@given(graph=graphs, workers=st.integers(1, 4), asynchronous=st.booleans())
def test_any_graph_runs_each_step_once_after_its_dependencies(
    graph: tuple[set[int], ...], workers: int, asynchronous: bool
) -> None:
    wf = Workflow("generated")
    done: list[int] = []
    for number, dependencies in enumerate(graph):

        def step(ctx: Context, number: int = number, dependencies: set[int] = dependencies) -> int:
            assert dependencies <= set(done)
            done.append(number)
            return number

        wf.add_step(str(number), step, depends_on=[str(before) for before in dependencies])
    run: Run = Drive("coroutines" if asynchronous else "threads")(wf, max_workers=workers)
    assert sorted(done) == list(range(len(graph)))
    assert run.results == {str(number): number for number in range(len(graph))}
