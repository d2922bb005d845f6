"""Log records say which run, step and attempt they come from, wherever the code runs that writes them."""

import asyncio
import io
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flowcore import Backoff, Context, LoggingHook, Retry, StepTimeout, Workflow
from flowcore.events import StepFinished
from flowcore_otel import LogContext, TracingHook

from .conftest import Driver, MakeDriver, Spans, trip


class Records(logging.Handler):
    """Keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def said(self, message: str) -> Any:
        (record,) = (record for record in self.records if record.getMessage() == message)
        return record

    def ids(self, message: str) -> tuple[str | None, str | None, int | None]:
        record = self.said(message)
        return record.flowcore_workflow, record.flowcore_step, record.flowcore_attempt


log = logging.getLogger("the.application")


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    handler.addFilter(LogContext())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver(LogContext())


def test_a_record_in_a_step_has_all_ids(driver: Driver, records: Records) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: log.info("in a step"))
    run = driver.run(wf)
    assert records.ids("in a step") == ("trip", "book", 1)
    assert records.said("in a step").flowcore_run_id == run.id


def test_elsewhere_there_are_none_and_the_caller_keeps_none(driver: Driver, records: Records) -> None:
    log.info("before")
    driver.run(trip().wf)
    log.info("after")
    for message in ("before", "after"):
        assert records.ids(message) == (None, None, None)
        assert records.said(message).flowcore_run_id is None
        assert (records.said(message).trace_id, records.said(message).span_id) == (None, None)


def test_in_a_step_with_a_limit_on_another_thread(driver: Driver, records: Records) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: log.info("on %s", threading.current_thread() is threading.main_thread()), timeout=9)
    driver.run(wf)
    assert records.ids("on False") == ("trip", "book", 1)


def test_in_steps_side_by_side_each_has_its_own(driver: Driver, records: Records) -> None:
    wf = Workflow("trip")
    together = threading.Barrier(4)

    def step(ctx: Context) -> None:
        together.wait(10)
        log.info("in %s", ctx.step)

    for number in range(4):
        wf.add_step(f"s{number}", step)
    driver.run(wf)
    assert [records.ids(f"in s{number}") for number in range(4)] == [("trip", f"s{number}", 1) for number in range(4)]


def test_in_an_async_step_and_its_tasks(make_driver: MakeDriver, records: Records) -> None:
    driver = make_driver(LogContext())
    if driver.kind != "asyncio":
        pytest.skip("threads run no async steps")
    wf = Workflow("trip")

    @wf.step
    async def book(ctx: Context) -> None:
        async def later() -> None:
            log.info("in a task")

        await asyncio.sleep(0)
        log.info("in a coroutine")
        await asyncio.create_task(later())

    driver.run(wf)
    assert records.ids("in a coroutine") == records.ids("in a task") == ("trip", "book", 1)


def test_each_attempt_and_the_undo_say_which_they_are(driver: Driver, records: Records) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None, compensate=lambda ctx: log.info("undo"))

    def pay(ctx: Context) -> None:
        log.info("attempt %d", ctx.attempt)
        raise ValueError

    wf.add_step("pay", pay, depends_on="book", retry=2)
    driver.run(wf, check=False)
    assert [records.ids(f"attempt {number}") for number in (1, 2)] == [("trip", "pay", 1), ("trip", "pay", 2)]
    assert records.ids("undo") == ("trip", "book", 1)


def test_the_predicate_of_a_retry_has_the_ids_of_the_attempt_that_failed(driver: Driver, records: Records) -> None:
    wf = Workflow("trip")

    def passing(error: Exception) -> bool:
        log.info("asked about %s", error)
        return True

    def pay(ctx: Context) -> None:
        raise ValueError(ctx.attempt)

    def cancel(ctx: Context) -> None:
        raise OSError("undo")

    booked = wf.add_step("book", lambda ctx: None)
    booked.compensate(retry=Retry(2, Backoff.fixed(0), on=passing))(cancel)
    wf.add_step("pay", pay, depends_on="book", retry=Retry(3, Backoff.fixed(0), on=passing))
    driver.run(wf, check=False)
    assert [records.ids(f"asked about {number}") for number in (1, 2)] == [("trip", "pay", 1), ("trip", "pay", 2)]
    assert records.ids("asked about undo") == ("trip", "book", 1)


def test_the_error_of_a_hook_has_the_ids_of_its_run(make_driver: MakeDriver, records: Records) -> None:
    def broken(event: object) -> None:
        if isinstance(event, StepFinished):
            raise OSError("full")

    run = make_driver(LogContext(), broken).run(trip().wf)
    (record,) = (record for record in records.records if record.name == "flowcore")
    assert record.flowcore_run_id == run.id


def test_an_attempt_that_completes_late_still_has_its_ids(make_driver: MakeDriver, records: Records) -> None:
    wf = Workflow("trip")
    go_on, landed = threading.Event(), threading.Event()

    def book(ctx: Context) -> None:
        assert go_on.wait(10)
        log.info("late")
        landed.set()

    wf.add_step("book", book, timeout=0.01)
    driver = make_driver(LogContext(), grace=0.01)
    if driver.kind == "asyncio":
        pytest.skip("a loop that ends with the run waits for its threads")
    with pytest.raises(StepTimeout):
        driver.run(wf)
    go_on.set()
    assert landed.wait(10)
    assert records.ids("late") == ("trip", "book", 1)


def test_a_record_has_the_ids_of_the_span_it_is_in(make_driver: MakeDriver, spans: Spans, records: Records) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: log.info("in a step"))
    make_driver(LogContext(), TracingHook(spans.provider)).run(wf)
    context = spans["step book"].context
    record = records.said("in a step")
    assert (record.trace_id, record.span_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_what_the_writer_has_set_stays(make_driver: MakeDriver, records: Records) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: log.info("mine", extra={"flowcore_step": "mine", "trace_id": "t"}))
    make_driver(LogContext(), LoggingHook()).run(wf)
    assert records.ids("mine") == ("trip", "mine", 1)
    assert records.said("mine").trace_id == "t"
    assert records.ids("  step book started")[:2] == ("trip", "book")


def test_a_formatter_may_count_on_every_field() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(LogContext())
    fields = ["flowcore_run_id", "flowcore_workflow", "flowcore_step", "flowcore_attempt", "trace_id", "span_id"]
    handler.setFormatter(logging.Formatter(" ".join(f"%({field})s" for field in fields)))
    handler.handle(logging.makeLogRecord({"msg": "hello"}))
    assert stream.getvalue() == "None None None None None None\n"
