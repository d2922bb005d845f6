"""Golden span trees: what an engineer sees of each kind of run. The same from both engines."""

import threading
from textwrap import dedent
from typing import Any

import pytest

from flowcore import (
    Backoff,
    CompensationFailed,
    Context,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    Retry,
    Workflow,
)
from flowcore_otel import TracingHook

from .conftest import Driver, MakeDriver, Spans, trip


def golden(text: str) -> str:
    return dedent(text).strip("\n")


def test_success(driver: Driver, spans: Spans) -> None:
    driver.run(trip().wf)
    assert spans.tree() == golden("""
        run trip
        ├── step book
        └── step pay → depends_on step book
    """)


def test_the_callers_span_is_the_parent_of_the_run(driver: Driver, spans: Spans) -> None:
    with spans.span("POST /trips"):
        driver.run(trip().wf)
    assert spans.tree() == golden("""
        POST /trips
        └── run trip
            ├── step book
            └── step pay → depends_on step book
    """)


def test_retries(driver: Driver, spans: Spans) -> None:
    driver.run(trip(fails=2, attempts=3).wf)
    assert spans.tree() == golden("""
        run trip
        ├── step book
        └── step pay → depends_on step book
            ├── attempt pay ERROR ValueError ! ValueError
            ├── backoff pay
            ├── attempt pay ERROR ValueError ! ValueError
            ├── backoff pay
            └── attempt pay
    """)


def test_a_saga_with_an_undo(driver: Driver, spans: Spans) -> None:
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=9, attempts=2).wf)
    assert spans.tree() == golden("""
        run trip ERROR ValueError
        ├── step book
        ├── step pay ERROR ValueError → depends_on step book
        │   ├── attempt pay ERROR ValueError ! ValueError
        │   ├── backoff pay
        │   └── attempt pay ERROR ValueError ! ValueError
        └── compensate book → compensates step book
            └── attempt book
    """)


def test_an_undo_with_retries_that_fails(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None: ...

    @book.compensate(retry=Retry(2, Backoff.fixed(0.001)))
    def cancel(ctx: Context) -> None:
        raise OSError("no line")

    @wf.step(depends_on=book)
    def pay(ctx: Context) -> None:
        raise ValueError("declined")

    with pytest.raises(CompensationFailed):
        driver.run(wf)
    assert spans.tree() == golden("""
        run trip ERROR flowcore.errors.CompensationFailed
        ├── step book
        ├── step pay ERROR ValueError ! ValueError → depends_on step book
        └── compensate book ERROR OSError → compensates step book
            ├── attempt book ERROR OSError ! OSError
            ├── backoff book
            └── attempt book ERROR OSError ! OSError
    """)


def test_a_replay_leads_to_the_original_run(driver: Driver, spans: Spans) -> None:
    wf = trip().wf
    with spans.span("first request"):
        driver.run(wf, idempotency_key="T-1")
    with spans.span("second request"):
        assert driver.run(wf, idempotency_key="T-1").replayed
    assert spans.tree() == golden("""
        first request
        └── run trip
            ├── step book
            └── step pay → depends_on step book
        second request
        └── idempotency hit trip → original_run run trip
    """)


def test_an_overlap_is_an_error_that_leads_to_the_original_run(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    started, overlapped = threading.Event(), threading.Event()

    @wf.step
    def book(ctx: Context) -> None:
        started.set()
        assert overlapped.wait(10)

    first = threading.Thread(target=driver.run, args=(wf,), kwargs={"idempotency_key": "T-1"})
    first.start()
    assert started.wait(10)
    with pytest.raises(IdempotencyInProgress):
        driver.run(wf, idempotency_key="T-1")
    overlapped.set()
    first.join(10)
    assert spans.tree() == golden("""
        run trip
        └── step book
        idempotency hit trip ERROR → original_run run trip
    """)


def test_a_mismatch(driver: Driver, spans: Spans) -> None:
    wf = trip().wf
    driver.run(wf, {"seat": 1}, idempotency_key="T-1")
    spans.clear()
    with pytest.raises(IdempotencyMismatch):
        driver.run(wf, {"seat": 2}, idempotency_key="T-1")
    assert spans.tree() == "idempotency hit trip ERROR → original_run (elsewhere)"


def test_a_held_key(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    def fail(ctx: Any) -> None:
        raise OSError("no line")

    wf.add_step("book", lambda ctx: None, compensate=fail)
    wf.add_step("pay", fail, depends_on="book")
    with pytest.raises(CompensationFailed):
        driver.run(wf, idempotency_key="T-1")
    spans.clear()
    with pytest.raises(IdempotencyHeld):
        driver.run(wf, idempotency_key="T-1")
    assert spans.tree() == "idempotency hit trip ERROR → original_run (elsewhere)"


def test_a_submitted_run_is_a_trace_of_its_own_linked_to_the_request(driver: Driver, spans: Spans) -> None:
    with spans.span("POST /trips"):
        driver.submit(trip().wf)
    assert spans.tree() == golden("""
        POST /trips
        └── submit trip PRODUCER
        run trip CONSUMER → request submit trip
        ├── step book
        └── step pay → depends_on step book
    """)
    assert len({span.context.trace_id for span in spans.all() if span.context is not None}) == 2


def test_parallel_steps(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    wf.add_step("search", lambda ctx: None)
    wf.add_step("hotel", lambda ctx: None, depends_on="search")
    wf.add_step("train", lambda ctx: None, depends_on="search")
    wf.add_step("pay", lambda ctx: None, depends_on=("hotel", "train"))
    driver.run(wf)
    assert sorted(line.strip("├└│─ ") for line in spans.tree().splitlines()[:-1]) == [
        "run trip",
        "step hotel → depends_on step search",
        "step search",
        "step train → depends_on step search",
    ]
    targets = {link.context.span_id for link in spans["step pay"].links}
    assert targets == {spans[name].context.span_id for name in ("step hotel", "step train")}


def test_a_skipped_step_has_no_span_and_is_listed_on_the_run(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None)
    wf.add_step("insure", lambda ctx: None, depends_on="book", when=lambda ctx: False)
    wf.add_step("pay", lambda ctx: None, depends_on="insure")
    driver.run(wf)
    assert spans.tree() == golden("""
        run trip
        ├── step book
        └── step pay
    """)
    assert spans["run trip"].attributes["flowcore.run.skipped"] == ("insure",)
    assert spans["run trip"].attributes["flowcore.run.critical_path"] == ("book", "pay")


def test_a_step_that_times_out(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    over = threading.Event()
    wf.add_step("book", lambda ctx: over.wait(5), timeout=0.02)
    with pytest.raises(TimeoutError):
        driver.run(wf)
    over.set()
    assert spans.tree() == golden("""
        run trip ERROR timeout
        └── step book ERROR timeout ! timeout
    """)


def test_a_run_inside_a_step_is_its_child(make_driver: MakeDriver, spans: Spans) -> None:
    driver = make_driver(TracingHook(spans.provider))
    outer, inner = Workflow("outer"), Workflow("inner")
    inner.add_step("deep", lambda ctx: None)
    if driver.kind == "threads":
        outer.add_step("call", lambda ctx: driver.run(inner))
    else:

        async def call(ctx: Context) -> None:
            await driver.engine.run(inner)

        outer.add_step("call", call)
    driver.run(outer)
    assert spans.tree() == golden("""
        run outer
        └── step call
            └── run inner
                └── step deep
    """)


def test_user_spans_nest_under_the_innermost_of_attempt_and_step(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None:
        with spans.span("SELECT seats"):
            pass

    @book.compensate
    def cancel(ctx: Context) -> None:
        with spans.span("DELETE seats"):
            pass

    @wf.step(depends_on=book, retry=2)
    def pay(ctx: Context) -> None:
        with spans.span("POST /charges"):
            pass
        raise ValueError("declined")

    with pytest.raises(ValueError, match="declined"):
        driver.run(wf)
    assert spans.tree() == golden("""
        run trip ERROR ValueError
        ├── step book
        │   └── SELECT seats
        ├── step pay ERROR ValueError → depends_on step book
        │   ├── attempt pay ERROR ValueError ! ValueError
        │   │   └── POST /charges
        │   ├── backoff pay
        │   └── attempt pay ERROR ValueError ! ValueError
        │       └── POST /charges
        └── compensate book → compensates step book
            └── attempt book
                └── DELETE seats
    """)


def test_the_children_of_a_step_that_fans_out_are_linked_to_their_parent(driver: Driver, spans: Spans) -> None:
    child, parent = Workflow("letter"), Workflow("mailing")
    child.add_step("send", lambda ctx: None)
    whom = [{"id": "ann"}, {"id": "bob"}]

    def send_all(ctx: Context) -> int:
        return len(list(driver.engine.map(child, whom, key=lambda one: f"{ctx.step_key}/{one['id']}", ordered=True)))

    async def send_all_on_a_loop(ctx: Context) -> int:
        children = driver.engine.map(child, whom, key=lambda one: f"{ctx.step_key}/{one['id']}", ordered=True)
        return len([run async for run in children])

    parent.add_step("send all", send_all if driver.kind == "threads" else send_all_on_a_loop)
    driver.run(parent, idempotency_key="k")
    assert spans.tree() == golden("""
        run mailing
        └── step send all
            ├── submit letter PRODUCER
            └── submit letter PRODUCER
        run letter CONSUMER → request submit letter
        └── step send
        run letter CONSUMER → request submit letter
        └── step send
    """)
