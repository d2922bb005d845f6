"""Durable runs in real engines, on a store in memory that can refuse, stay silent, and forget: what simulations do not reach."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    IdempotencyHeld,
    Landed,
    LeaseLost,
    MemoryStore,
    NotLanded,
    NotSerializable,
    Retry,
    RunFailed,
    RunParked,
    RunTimeout,
    Status,
    StoreError,
    StoreUnavailable,
    Workflow,
)
from flowcore.events import (
    EngineStarted,
    LeaseLost as LeaseLostEvent,
    MaintenanceFinished,
    MaintenanceStarted,
    RunRecovered,
    StoreCalled,
    StoreSurveyed,
)
from flowcore.stores.base import (
    Arrived,
    Behind,
    Checkpoint,
    CheckpointAnswer,
    Claim,
    ClaimAnswer,
    Ending,
    Lease,
    Lost,
    Page,
    Renewal,
    RunRecord,
)
from flowcore.testing import SimulatedStore
from flowcore.testing.acts import Caller, Halt
from flowcore.testing.story import play

PATIENCE = 20.0


class Moody(SimulatedStore):
    """A durable store whose answers a test can spoil: `moods` is asked before each verb and may raise, or answer a reply
    that takes the place of the store's own."""

    def __init__(self) -> None:
        super().__init__(clock=time.monotonic)
        self.moods: Callable[[str, Any], Any] = lambda verb, argument: None
        self.asked: list[str] = []

    def _mood(self, verb: str, argument: Any) -> Any:
        self.asked.append(verb)
        return self.moods(verb, argument)

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        return self._mood("claim", claim) or super().claim(claim)

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        return self._mood("checkpoint", checkpoint) or super().checkpoint(checkpoint)

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        return self._mood("finish", ending) or super().finish(ending)

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        return self._mood("renew", leases) or super().renew(leases, lease)

    def head(self, key: str, /) -> RunRecord | None:
        return self._mood("head", key) or super().head(key)

    def withdraw(self, claim: Claim, /) -> None:
        self._mood("withdraw", claim)
        super().withdraw(claim)

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        return self._mood("list_resumable", workflows) or super().list_resumable(workflows, limit=limit, after=after)


class Strict(Moody):
    """It can keep strings and numbers, and nothing else."""

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        self._refuse(checkpoint)
        return super().checkpoint(checkpoint)

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        if ending.changes is not None:
            self._refuse(ending.changes)
        return super().finish(ending)

    def _refuse(self, changes: Checkpoint) -> None:
        for name, step in changes.steps.items():
            if not isinstance(step.result, str | int | None):
                raise NotSerializable(f"the result of step {name!r} cannot be stored")
        for key, write in changes.writes.items():
            if not isinstance(write.value, str | int | None):
                raise NotSerializable(f"the value of {key!r} cannot be stored")


def until(condition: Callable[[], Any]) -> Any:
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if said := condition():
            return said
        pause.wait(0.001)
    raise AssertionError("waited in vain")


def of_type(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def done() -> list[str]:
    return []


def saga(done: list[str], **fns: Callable[[Context], Any]) -> Workflow:
    """A chain of steps that write down what they did, and undid."""
    wf = Workflow("saga")
    before: list[str] = []
    for name, fn in fns.items():

        def do(ctx: Context, fn: Callable[[Context], Any] = fn) -> Any:
            done.append(ctx.step)
            return fn(ctx)

        wf.add_step(name, do, depends_on=before, compensate=lambda ctx: done.append(f"-{ctx.step}"))
        before = [name]
    return wf


def fine(ctx: Context) -> str:
    return ctx.step


def fails(ctx: Context) -> None:
    raise ValueError(ctx.step)


@pytest.fixture(params=["threads", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a workflow in an engine on threads, or on asyncio."""

    def on_threads(wf: Workflow, values: Any = None, *, options: Any = None, **request: Any) -> Any:
        with Engine(**(options or {})) as engine:
            return engine.run(wf, values, **request)

    def on_asyncio(wf: Workflow, values: Any = None, *, options: Any = None, **request: Any) -> Any:
        async def main() -> Any:
            async with AsyncEngine(**(options or {})) as engine:
                return await engine.run(wf, values, **request)

        return asyncio.run(main())

    return on_threads if request.param == "threads" else on_asyncio


# -- what cannot be stored ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_a_result_that_cannot_be_stored_fails_the_run_and_its_step_is_undone(
    run: Callable[..., Any], done: list[str], last: bool
) -> None:
    steps = {"a": fine, "b": lambda ctx: object()} if last else {"a": fine, "b": lambda ctx: object(), "c": fine}
    with pytest.raises(NotSerializable, match="the result of step 'b' cannot be stored"):
        run(saga(done, **steps), options={"store": Strict()}, idempotency_key="k")
    assert done == ["a", "b", "-b", "-a"]


def test_a_write_that_cannot_be_stored_fails_the_run(run: Callable[..., Any], done: list[str]) -> None:
    def write(ctx: Context) -> None:
        ctx["thing"] = object()

    with pytest.raises(NotSerializable, match="the value of 'thing' cannot be stored"):
        run(saga(done, a=fine, b=write, c=fine), options={"store": Strict()}, idempotency_key="k")
    assert done == ["a", "b", "-b", "-a"]


@pytest.mark.parametrize("pause", [0.0, 0.001])
def test_a_write_of_a_failed_attempt_that_cannot_be_stored_fails_the_step(
    run: Callable[..., Any], pause: float
) -> None:
    attempts: list[int] = []

    def write(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        ctx["thing"] = object()
        raise ValueError("again")

    wf = Workflow("retried")
    wf.add_step("a", write, retry=Retry(3, backoff=Backoff.fixed(pause)))
    with pytest.raises(NotSerializable, match="the value of 'thing' cannot be stored"):
        run(wf, options={"store": Strict()}, idempotency_key="k")
    assert attempts == [1]


def test_a_write_of_when_that_cannot_be_stored_fails_the_step(run: Callable[..., Any]) -> None:
    def when(ctx: Context) -> bool:
        ctx["thing"] = object()
        return True

    wf = Workflow("asked")
    wf.add_step("a", fine, when=when)
    with pytest.raises(NotSerializable, match="the value of 'thing' cannot be stored"):
        run(wf, options={"store": Strict()}, idempotency_key="k")


def test_a_failed_step_with_a_write_that_cannot_be_stored_is_undone_all_the_same(
    run: Callable[..., Any], done: list[str]
) -> None:
    def write(ctx: Context) -> None:
        ctx["thing"] = object()
        raise ValueError("b")

    with pytest.raises(ValueError, match="b"):
        run(saga(done, a=fine, b=write), options={"store": Strict()}, idempotency_key="k")
    assert done == ["a", "b", "-a"]


# -- a store that stays silent -----------------------------------------------------------------------------------------


def silent(*verbs: str, after: int = 0) -> Callable[[str, Any], None]:
    """A mood: these verbs get no answer, after so many that do."""
    left = [after]

    def mood(verb: str, argument: Any) -> None:
        if verb in verbs:
            left[0] -= 1
            if left[0] < 0:
                raise StoreUnavailable("gone")

    return mood


def test_a_run_parks_while_it_works_and_the_next_call_continues(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    store.moods = silent("checkpoint", "renew", after=1)
    wf = saga(done, a=fine, b=fine, c=fine)
    with pytest.raises(
        RunParked, match=r"was parked: its progress could not be saved \(gone\)\. It resumes on the next call"
    ):
        run(wf, options={"store": store, "lease": 0.3, "store_patience": 0.2}, idempotency_key="k")
    assert store.find("k").status is Status.PARKED
    store.moods = lambda verb, argument: None
    assert run(wf, options={"store": store}, idempotency_key="k")["c"] == "c"
    assert done in (["a", "b", "c"], ["a", "b", "b", "c"])


def test_a_run_parks_while_it_undoes_and_the_next_call_only_undoes(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    store.moods = silent("checkpoint", "renew", after=3)
    wf = saga(done, a=fine, b=fine, c=fails)
    with pytest.raises(RunParked):
        run(wf, options={"store": store, "lease": 0.3, "store_patience": 0.2}, idempotency_key="k")
    store.moods = lambda verb, argument: None
    with pytest.raises(RunFailed) as caught:
        run(wf, options={"store": store}, idempotency_key="k")
    assert (caught.value.step, caught.value.error_type) == ("c", "ValueError")
    assert done.count("c") == 1
    assert done[-1] == "-a"
    assert store.find("k").status is Status.COMPENSATED


def test_a_run_whose_end_cannot_be_recorded_parks(run: Callable[..., Any], done: list[str]) -> None:
    for steps in ({"a": fine}, {"a": fine, "b": fails}):
        store = Moody()
        store.moods = silent("finish", "renew")
        options = {"store": store, "lease": 0.2, "store_patience": 0.2}
        with pytest.raises(RunParked, match="its end could not be saved"):
            run(saga(done, **steps), options=options, idempotency_key="k")


def test_another_refusal_of_the_store_parks_at_once(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()

    def mood(verb: str, argument: Any) -> None:
        if verb == "checkpoint":
            raise StoreError("not allowed")

    store.moods = mood
    began = time.monotonic()
    with pytest.raises(RunParked, match="not allowed"):
        run(saga(done, a=fine, b=fine), options={"store": store, "lease": 60.0}, idempotency_key="k")
    assert time.monotonic() - began < 10
    assert store.asked.count("checkpoint") == 1


def test_a_claim_without_an_answer_is_sent_again_and_then_withdrawn(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    store.moods = silent("claim")
    with pytest.raises(StoreUnavailable, match="gone"):
        run(saga(done, a=fine), options={"store": store, "lease": 0.3}, idempotency_key="k")
    assert store.asked.count("claim") > 1
    assert store.asked[-1] == "withdraw"
    assert done == []


def test_a_claim_that_is_granted_a_lease_late_is_taken_back_where_the_key_has_had_other_runs(
    run: Callable[..., Any], done: list[str]
) -> None:
    store, lease = Moody(), 0.05
    again = partial(run, saga(done, a=fine, b=fails), options={"store": store, "lease": lease}, idempotency_key="k")
    store.moods = lambda verb, argument: time.sleep(2 * lease) if verb == "claim" else None
    with pytest.raises(
        ValueError, match="b"
    ):  # the first run of a key belongs to its caller, however late it is granted
        again()
    store.asked.clear()
    with pytest.raises(
        StoreUnavailable,
        match=r"The store replied to the claim for key 8254c329a92850f6 too late \(more than one lease\)",
    ):
        again()
    assert (store.asked, done) == (["claim", "withdraw"], ["a", "b", "-a"])
    store.moods = lambda verb, argument: None
    with pytest.raises(ValueError, match="b"):
        again()


# -- a lease that is lost ----------------------------------------------------------------------------------------------


def test_who_has_lost_the_run_stops_and_learns_it(run: Callable[..., Any], done: list[str]) -> None:
    for steps in ({"a": fine, "b": fine}, {"a": fine}, {"a": fine, "b": fails}):
        events: list[Any] = []
        store = Moody()
        store.moods = lambda verb, argument: Lost() if verb in {"checkpoint", "finish"} else None
        with pytest.raises(LeaseLost, match="Another process has taken over run") as caught:
            run(saga(done, **steps), options={"store": store, "hooks": [events.append]}, idempotency_key="k")
        assert caught.value.run_id == store.find("k").run_id
        assert len(of_type(events, LeaseLostEvent)) == 1


def test_a_store_that_has_forgotten_the_run_says_so(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    store.moods = lambda verb, argument: Lost(gone=True) if verb == "checkpoint" else None
    with pytest.raises(LeaseLost, match="The store no longer has a record of run"):
        run(saga(done, a=fine, b=fine), options={"store": store}, idempotency_key="k")


@pytest.mark.parametrize("wait", [None, 15.0])
def test_the_loser_adopts_the_outcome_of_the_owner(done: list[str], wait: float | None) -> None:
    store = Moody()
    reached, go_on = threading.Event(), threading.Event()

    def waits(ctx: Context) -> str:
        if ctx.fence == 1:
            reached.set()
            go_on.wait(PATIENCE)
        return ctx.step

    wf = saga(done, a=fine, b=waits, c=fine)
    with Engine(store=store, lease=0.2) as sleepy, Engine(store=store) as quick:
        store.moods = silent("renew")
        future = sleepy.submit(wf, idempotency_key="k", wait=wait)
        reached.wait(PATIENCE)
        until(lambda: store.list_runs(status="expired"))
        owner = quick.run(wf, idempotency_key="k")
        go_on.set()
        loser = future.result(PATIENCE)
    assert (loser.id, loser.status, loser.replayed) == (owner.id, Status.SUCCESS, True)
    assert loser.results == owner.results
    assert done == ["a", "b", "b", "c"]


def test_the_heartbeat_keeps_a_lease_and_reports_itself(run: Callable[..., Any], done: list[str]) -> None:
    store, events = Moody(), []

    def waits(ctx: Context) -> None:
        until(lambda: store.asked.count("renew") > 3)

    assert run(
        saga(done, a=waits, b=fine),
        options={"store": store, "lease": 0.15, "hooks": [events.append]},
        idempotency_key="k",
    )
    assert [event.kind for event in of_type(events, MaintenanceStarted)][:1] == ["heartbeat"]
    assert {event.operation for event in of_type(events, StoreCalled)} >= {"claim", "checkpoint", "renew", "finish"}
    assert of_type(events, MaintenanceFinished)


def test_a_heartbeat_that_finds_the_run_lost_stops_it(run: Callable[..., Any], done: list[str]) -> None:
    store, events = Moody(), []
    noticed: list[str] = []

    def waits(ctx: Context) -> None:
        until(lambda: ctx.cancelled)
        noticed.append(ctx.step)

    def mood(verb: str, argument: Any) -> Any:
        if verb == "renew":
            return [Renewal.LOST]
        return Lost() if verb in {"checkpoint", "finish"} else None

    store.moods = mood
    options = {"store": store, "lease": 0.1, "hooks": [events.append], "grace": 0.1}
    with pytest.raises(LeaseLost):
        run(saga(done, a=waits, b=fine), options=options, idempotency_key="k")
    assert noticed == done == ["a"]
    assert len(of_type(events, LeaseLostEvent)) == 1


@pytest.mark.parametrize("error", [StoreUnavailable, asyncio.CancelledError])
def test_a_heartbeat_survives_what_its_store_raises(
    run: Callable[..., Any], done: list[str], caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """A client of a store may raise CancelledError because one of its tasks was cancelled."""
    store = Moody()
    failed: list[str] = []

    def mood(verb: str, argument: Any) -> None:
        if verb == "renew" and not failed:
            failed.append(verb)
            raise error("for a moment")

    store.moods = mood

    def waits(ctx: Context) -> None:
        until(lambda: store.asked.count("renew") > 1)

    with caplog.at_level(logging.WARNING, logger="flowcore"):
        assert run(saga(done, a=waits, b=fine), options={"store": store, "lease": 0.3}, idempotency_key="k")
    assert f"leases could not be renewed: {error.__name__}: for a moment" in caplog.text


# -- takeover ----------------------------------------------------------------------------------------------------------


def test_a_takeover_reports_what_it_does_with_each_step(done: list[str]) -> None:
    wf = saga(done, a=fine, b=fine, c=fine)
    callers = (Caller(halt=Halt("call", 2, done=True)), Caller(40.0))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    event = of_type(story.acts[1].events, RunRecovered)[0]
    assert (event.decision, event.skipped, event.retried, event.verified) == ("forward", ("a",), ("b",), ())
    assert done == ["a", "b", "b", "c"]


async def looked(ctx: Context) -> Any:
    await asyncio.sleep(0)
    return Landed("found")


@pytest.mark.parametrize(
    ("verify", "times", "result"),
    [
        (lambda ctx: Landed("found"), 1, "found"),
        (lambda ctx: NotLanded, 2, "b"),
        (lambda ctx: NotLanded(), 2, "b"),
        (lambda ctx: None, 2, "b"),
        (looked, 1, "found"),
        (lambda ctx: looked(ctx), 1, "found"),  # noqa: PLW0108 - a plain function that answers with a coroutine
    ],
)
def test_verify_is_asked_about_a_step_in_flight(verify: Any, times: int, result: str) -> None:
    done: list[str] = []
    wf = Workflow("verified")
    wf.add_step("a", fine)

    def do(ctx: Context) -> str:
        done.append(ctx.step)
        return ctx.step

    wf.add_step("b", do, depends_on="a", verify=verify)
    story = play(
        wf, seed=1, store=SimulatedStore(), key="k", callers=(Caller(halt=Halt("call", 2, done=True)), Caller(40.0))
    )
    assert story.acts[-1].run.results == {"a": "a", "b": result}
    assert len(done) == times


@pytest.mark.parametrize("verify", [fails, lambda ctx: "yes"])
def test_a_verify_that_cannot_tell_parks_the_run(verify: Any) -> None:
    wf = Workflow("unsure")
    wf.add_step("a", fine, verify=verify)
    callers = (Caller(halt=Halt("call", 1, done=True)), Caller(40.0))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    error = story.acts[1].run.error
    assert isinstance(error, RunParked)
    assert "verify= of step 'a'" in str(error)


def test_a_deadline_counts_from_the_first_claim_also_after_a_takeover(done: list[str]) -> None:
    wf = Workflow("late", deadline=10.0)
    wf.add_step("a", fine, compensate=lambda ctx: done.append("-a"))
    wf.add_step("b", fine, depends_on="a")
    callers = (Caller(halt=Halt("call", 2, done=False)), Caller(40.0))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    run = story.acts[1].run
    assert (run.status, run.failed_step) == (Status.COMPENSATED, "b")
    assert isinstance(run.error, RunTimeout)
    assert done == ["-a"]


@pytest.mark.parametrize(("deadline", "status"), [(None, Status.SUCCESS), (2.0, Status.INCOMPLETE)])
def test_the_recorded_deadline_gives_way_to_the_calls_own_even_where_that_is_the_workflows(
    deadline: float | None, status: Status
) -> None:
    now, tries = [0.0], list[int]()
    wf = Workflow("etl", undo="never", deadline=2.0)

    @wf.step
    def load(ctx: Context) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no table")

    store = MemoryStore(strict=True, clock=lambda: now[0])
    with Engine(store=store) as engine:
        first = engine.run(wf, idempotency_key="k", deadline=3600, check=False)
        assert first.status is Status.INCOMPLETE
        now[0] = 3.0
        run = engine.run(wf, idempotency_key="k", deadline=deadline, check=False)
        assert (run.status, isinstance(run.error, RunTimeout)) == (status, deadline is not None)


def test_a_run_that_was_held_meanwhile_is_refused_to_who_waited_for_it() -> None:
    wf = Workflow("held")
    wf.add_step("a", fine, on_crash="hold")
    first = Caller(halt=Halt("call", 1, done=True))
    waits = Caller(0.5, beside=True, wait=200.0, halt=Halt("store", 3, done=False, seconds=60.0))
    callers = (first, waits, Caller(33.0, beside=True))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    assert story.acts[2].run.held
    assert isinstance(story.acts[1].refusal, IdempotencyHeld)


# -- recover -----------------------------------------------------------------------------------------------------------


def parked(done: list[str], wf: Workflow) -> Moody:
    """A store with a parked run of `wf`."""
    store = Moody()
    store.moods = silent("checkpoint", "renew", after=1)
    with pytest.raises(RunParked), Engine(store=store, lease=0.2, store_patience=0.2) as engine:
        engine.run(wf, {"n": 1}, idempotency_key="k")
    store.moods = lambda verb, argument: None
    return store


def test_recover_resumes_what_was_left_and_reports_it(done: list[str]) -> None:
    wf = saga(done, a=fine, b=fine, c=fine)
    store, events = parked(done, wf), []
    with Engine(store=store, workflows=[wf], hooks=[events.append]) as engine:
        runs = engine.recover()
        assert [run.status for run in runs] == [Status.SUCCESS]
        assert engine.recover() == []
    surveys = of_type(events, StoreSurveyed)
    assert [survey.counts["saga", "parked"] for survey in surveys] == [1, 0]
    assert of_type(events, EngineStarted)
    kinds = {event.kind for event in of_type(events, MaintenanceStarted)}
    assert "recover" in kinds


def test_recover_on_asyncio_resumes_what_was_left(done: list[str]) -> None:
    wf = saga(done, a=fine, b=fine, c=fine)
    store, events = parked(done, wf), []

    async def main() -> list[Any]:
        async with AsyncEngine(store=store, workflows=[wf], hooks=[events.append]) as engine:
            return await engine.recover()

    assert [run.status for run in asyncio.run(main())] == [Status.SUCCESS]
    assert of_type(events, StoreSurveyed)


def test_recover_every_needs_no_caller(done: list[str]) -> None:
    wf = saga(done, a=fine, b=fine, c=fine)
    store = parked(done, wf)
    with Engine(store=store, workflows=[wf], recover_every=0.02):
        until(lambda: store.find("k").status is Status.SUCCESS)

    done.clear()
    store = parked(done, wf)

    async def main() -> None:
        async with AsyncEngine(store=store, workflows=[wf], recover_every=0.02):
            while store.find("k").status is not Status.SUCCESS:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_run_that_is_over_by_the_time_it_is_recovered_is_left_alone(done: list[str]) -> None:
    wf = saga(done, a=fine)
    store = Moody()
    with Engine(store=store, workflows=[wf]) as engine:
        engine.run(wf, idempotency_key="k")
        store.moods = lambda verb, argument: Page(filter(None, [store.find("k")])) if verb == "list_resumable" else None
        assert engine.recover() == []
        forgotten = store.find("k")
        assert forgotten is not None
        forgotten.key = "unknown"
        store.moods = lambda verb, argument: Page([forgotten]) if verb == "list_resumable" else None
        assert engine.recover() == []
    assert done == ["a"]
    assert "withdraw" in store.asked


def test_a_store_that_cannot_say_what_is_left_fails_the_recovery(run: Callable[..., Any]) -> None:
    store, events = Moody(), []
    store.moods = silent("list_resumable")
    engine = Engine(store=store, workflows=[Workflow("w")], hooks=[events.append])
    with engine, pytest.raises(StoreUnavailable):
        engine.recover()
    assert isinstance(of_type(events, MaintenanceFinished)[-1].error, StoreUnavailable)


# -- async stores ------------------------------------------------------------------------------------------------------


class Coroutines:
    """The verbs of a Moody store as coroutines."""

    name = "coroutines"
    durable = True
    blocks = True

    def __init__(self) -> None:
        self.inner = Moody()

    async def claim(self, claim: Claim, /) -> ClaimAnswer:
        await asyncio.sleep(0)
        return self.inner.claim(claim)

    async def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        await asyncio.sleep(0)
        return self.inner.checkpoint(checkpoint)

    async def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        await asyncio.sleep(0)
        return self.inner.finish(ending)

    async def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        await asyncio.sleep(0)
        return self.inner.renew(leases, lease)

    async def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        return self.inner.list_resumable(workflows, limit=limit, after=after)


def test_an_async_store_is_asked_on_the_loop_and_its_heartbeat_has_a_loop_of_its_own(done: list[str]) -> None:
    store = Coroutines()

    async def waits(ctx: Context) -> str:
        while store.inner.asked.count("renew") < 2:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.005)
        return "waited"

    wf = Workflow("on the loop")
    wf.add_step("a", waits)
    wf.add_step("b", fine, depends_on="a")

    async def main() -> Any:
        async with AsyncEngine(store=store, lease=0.15, workflows=[wf]) as engine:
            assert await engine.recover() == []
            return await engine.run(wf, idempotency_key="k")

    assert asyncio.run(main()).results == {"a": "waited", "b": "b"}
    assert store.inner.find("k").status is Status.SUCCESS


def test_a_retried_step_of_a_durable_run_reports_each_attempt(run: Callable[..., Any]) -> None:
    store = Moody()
    reported: list[int] = []

    def mood(verb: str, argument: Any) -> None:
        if verb == "checkpoint" and "a" in argument.steps:
            reported.append(argument.steps["a"].report.attempts)

    store.moods = mood
    wf = Workflow("retried")
    wf.add_step("a", lambda ctx: 1 / 0 if ctx.attempt < 3 else "third", retry=Retry(3))
    wf.add_step("b", fine, depends_on="a")
    assert run(wf, options={"store": store}, idempotency_key="k")["a"] == "third"
    assert reported == [2, 3, 3]
