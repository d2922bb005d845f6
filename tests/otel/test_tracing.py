"""What the spans say: attributes, statuses, exceptions, times, limits; and what they must never do to a run."""

import itertools
import logging
import threading
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from flowcore import Backoff, Context, Engine, Retry, Workflow
from flowcore.events import Event, IdempotencyHit, RunRequested, RunStarted
from flowcore_otel import TracingHook, names

from .conftest import Driver, MakeDriver, Spans, trip


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_attributes_of_a_run_and_its_steps(driver: Driver, spans: Spans) -> None:
    made = trip()
    run = driver.run(made.wf, idempotency_key="T-1")
    book, pay, whole = (dict(spans[name].attributes or {}) for name in ("step book", "step pay", "run trip"))
    assert book.pop("flowcore.step.wait") >= 0
    assert book == {
        "flowcore.workflow.name": "trip",
        "flowcore.run.id": run.id,
        "flowcore.step.name": "book",
        "flowcore.step.max_attempts": 1,
        "flowcore.step.outcome": "success",
        "code.function.name": f"{made.book.__module__}.{made.book.__qualname__}",
    }
    assert pay["flowcore.step.depends_on"] == ("book",)
    assert pay["flowcore.step.depends_on.count"] == 1
    assert 0 < whole.pop("flowcore.run.critical_path.seconds") < 10
    assert 0 < whole.pop("flowcore.run.parallelism") <= 1
    assert 0 < whole.pop("flowcore.run.store_seconds") < 10
    assert whole == {
        "flowcore.workflow.name": "trip",
        "flowcore.run.id": run.id,
        "flowcore.run.outcome": "success",
        "flowcore.run.critical_path": ("book", "pay"),
        "flowcore.run.critical_path.length": 2,
        "flowcore.idempotency.key_hash": "cd4a8a25abc253aa",
    }


def test_attributes_of_attempts_backoffs_and_undos(driver: Driver, spans: Spans) -> None:
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=2, attempts=2).wf)
    first, last = (dict(span.attributes or {}) for span in spans.named("attempt pay"))
    assert (first["flowcore.step.attempt"], last["flowcore.step.attempt"]) == (1, 2)
    ids = {name: (spans["run trip"].attributes or {})[name] for name in ("flowcore.run.id", "flowcore.workflow.name")}
    assert last == ids | {
        "flowcore.step.name": "pay",
        "flowcore.step.attempt": 2,
        "flowcore.step.max_attempts": 2,
        "flowcore.step.outcome": "failure",
        "error.type": "ValueError",
    }
    assert dict(spans["backoff pay"].attributes or {}) == ids | {
        "flowcore.step.name": "pay",
        "flowcore.step.attempt": 1,
        "flowcore.backoff.delay": 0.002,
        "flowcore.backoff.reason": "policy",
    }
    pay = dict(spans["step pay"].attributes or {})
    assert pay["flowcore.step.attempt"] == 2
    assert pay["flowcore.step.backoff"] == pytest.approx(seconds(spans["backoff pay"]), abs=1e-3)
    undo = dict(spans["compensate book"].attributes or {})
    assert undo["flowcore.compensation.order"] == 1
    assert undo["flowcore.compensation.trigger"] == "pay"
    assert undo["flowcore.compensation.outcome"] == "success"
    assert "error.type" not in undo
    assert spans["run trip"].attributes["flowcore.run.outcome"] == "compensated"


def test_statuses_are_unset_on_success_and_tell_the_message_on_failure(driver: Driver, spans: Spans) -> None:
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=1).wf)
    said = {span.name: (span.status.status_code, span.status.description) for span in spans.all()}
    assert said == {
        "step book": (StatusCode.UNSET, None),
        "step pay": (StatusCode.ERROR, "declined"),
        "compensate book": (StatusCode.UNSET, None),
        "attempt book": (StatusCode.UNSET, None),
        "run trip": (StatusCode.ERROR, "declined"),
    }


def test_a_retried_failure_marks_its_attempt_and_not_the_step(driver: Driver, spans: Spans) -> None:
    driver.run(trip(fails=1, attempts=2).wf)
    assert spans["step pay"].status.status_code is StatusCode.UNSET
    assert "error.type" not in (spans["step pay"].attributes or {})
    assert [span.status.status_code for span in spans.named("attempt pay")] == [StatusCode.ERROR, StatusCode.UNSET]


def test_a_hit_says_how_old_the_original_is_and_never_shows_the_key(driver: Driver, spans: Spans) -> None:
    wf = trip().wf
    first = driver.run(wf, idempotency_key="secret-key")
    with spans.span("second request"):
        driver.run(wf, idempotency_key="secret-key")
    hit = dict(spans["idempotency hit trip"].attributes or {})
    assert 0 <= hit.pop("flowcore.idempotency.age") < 60
    assert hit == {
        "flowcore.workflow.name": "trip",
        "flowcore.idempotency.outcome": "replayed",
        "flowcore.run.id": first.id,
        "flowcore.idempotency.key_hash": "85dbe15d75ef9308",
        "flowcore.original_run.id": first.id,
        "flowcore.original_run.sampled": True,
    }
    assert spans["second request"].attributes["flowcore.run.id"] == first.id
    assert not any("secret-key" in span.to_json() for span in spans.all())


@pytest.mark.parametrize(("key_hash", "shown"), [(None, None), (str.upper, "T-1"), (lambda key: None, None)])
def test_key_hash_replaces_or_drops_what_is_shown(
    make_driver: MakeDriver, spans: Spans, key_hash: Any, shown: str | None
) -> None:
    make_driver(TracingHook(spans.provider, key_hash=key_hash)).run(trip().wf, idempotency_key="t-1")
    assert spans["run trip"].attributes.get("flowcore.idempotency.key_hash") == shown


def test_the_callers_span_gets_the_run_id(driver: Driver, spans: Spans) -> None:
    with spans.span("run"):
        ran = driver.run(trip().wf)
    with spans.span("submit"):
        submitted = driver.submit(trip().wf)
    assert spans["run"].attributes == {"flowcore.run.id": ran.id}
    assert spans["submit"].attributes == {"flowcore.run.id": submitted.id}


def test_an_exception_is_recorded_once_where_it_happened(driver: Driver, spans: Spans) -> None:
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=1).wf)
    recorded = [(span.name, event) for span in spans.all() for event in span.events]
    ((name, event),) = recorded
    assert (name, event.name) == ("step pay", "exception")
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "declined"
    assert 'raise ValueError("declined")' in event.attributes["exception.stacktrace"]


@pytest.mark.parametrize(("opt_in", "events"), [("", 1), ("logs/dup", 1), ("logs", 0)])
def test_exceptions_are_logs_too(
    make_driver: MakeDriver, spans: Spans, monkeypatch: pytest.MonkeyPatch, opt_in: str, events: int
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", opt_in)
    logs, exporter = logging_to_memory()
    driver = make_driver(TracingHook(spans.provider, logger_provider=logs))
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=1).wf)
    assert len(spans["step pay"].events) == events
    (record,) = [log.log_record for log in exporter.get_finished_logs() if log.log_record.event_name == "exception"]
    assert (record.severity_text, record.body) == ("ERROR", "ValueError: declined")
    assert record.span_id == spans["step pay"].context.span_id
    assert record.attributes["exception.type"] == "ValueError"


def test_log_events_are_evidence_of_what_has_started(make_driver: MakeDriver, spans: Spans) -> None:
    logs, exporter = logging_to_memory()
    hook = TracingHook(spans.provider, logger_provider=logs, step_events=True)
    run = make_driver(hook).run(trip().wf)
    records = [log.log_record for log in exporter.get_finished_logs()]
    assert [record.event_name for record in records] == [
        "flowcore.run.started",
        "flowcore.step.started",
        "flowcore.step.started",
    ]
    assert records[0].attributes["flowcore.run.id"] == run.id
    assert records[1].span_id == spans["step book"].context.span_id
    assert [record.body for record in records] == [
        f"run {run.id} of trip started",
        "step book started",
        "step pay started",
    ]


def logging_to_memory() -> tuple[LoggerProvider, InMemoryLogRecordExporter]:
    provider, exporter = LoggerProvider(), InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    return provider, exporter


def test_a_late_completion_is_reported_in_the_context_of_the_ended_step(spans: Spans) -> None:
    logs, exporter = logging_to_memory()
    wf = Workflow("trip")
    give_up, reported = threading.Event(), threading.Event()
    wf.add_step("book", lambda ctx: give_up.wait(5), timeout=0.02)
    hook = TracingHook(spans.provider, logger_provider=logs)

    def and_tell(event: Event) -> None:
        if type(event).__name__ == "StepCompletedLate":
            reported.set()

    with Engine(hooks=[hook, and_tell]) as engine:
        with pytest.raises(TimeoutError):
            engine.run(wf)
        give_up.set()
        assert reported.wait(5)
    record = exporter.get_finished_logs()[-1].log_record
    assert record.event_name == "flowcore.step.completed_late"
    assert record.span_id == spans["step book"].context.span_id
    assert record.attributes["flowcore.step.outcome"] == "success"


def test_a_steps_span_is_as_long_as_its_attempts_and_backoffs(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    left = itertools.count()

    @wf.step(retry=Retry(4, Backoff.fixed(0.02)))
    def pay(ctx: Context) -> None:
        threading.Event().wait(0.01)
        if next(left) < 3:
            raise ValueError("declined")

    driver.run(wf)
    whole = seconds(spans["step pay"])
    parts = sum(seconds(span) for span in spans.all() if span.name in {"attempt pay", "backoff pay"})
    assert whole == pytest.approx(parts, rel=0.01, abs=0.001)
    assert whole > 0.1


def test_spans_lie_within_their_parents(driver: Driver, spans: Spans) -> None:
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=9, attempts=3).wf)
    by_id = {span.context.span_id: span for span in spans.all() if span.context is not None}
    for span in spans.all():
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time


def test_every_name_is_in_the_catalogue(driver: Driver, spans: Spans) -> None:
    wf = trip(fails=9, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf, idempotency_key="T-1")
    driver.submit(trip().wf, idempotency_key="T-2")
    driver.run(trip().wf, idempotency_key="T-2")
    for span in spans.all():
        assert span.name.removesuffix(" trip").removesuffix(" pay").removesuffix(" book") in names.SPANS
        assert set(span.attributes or {}) <= set(names.ATTRIBUTES)
        for event in span.events:
            assert set(event.attributes or {}) <= set(names.ATTRIBUTES)
        for link in span.links:
            assert set(link.attributes or {}) == {names.LINK_TYPE}


def test_the_scope_names_library_version_and_conventions(driver: Driver, spans: Spans) -> None:
    driver.run(trip().wf)
    scope = spans["run trip"].instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.schema_url) == ("flowcore", "https://opentelemetry.io/schemas/1.44.0")
    assert scope.version


def test_all_spans_have_ended_before_run_returns_or_raises(make_driver: MakeDriver) -> None:
    live: set[str] = set()

    class Watch(SimpleSpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            live.add(span.name)

        def on_end(self, span: ReadableSpan) -> None:
            live.discard(span.name)

    provider = TracerProvider()
    provider.add_span_processor(Watch(Discard()))
    driver = make_driver(TracingHook(provider))
    driver.run(trip(fails=1, attempts=2).wf)
    assert live == set()
    with pytest.raises(ValueError, match="declined"):
        driver.run(trip(fails=1).wf)
    assert live == set()
    driver.submit(trip().wf)
    assert live == set()


class Discard(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_an_unsampled_run_makes_no_spans_and_keeps_user_spans_from_becoming_roots(make_driver: MakeDriver) -> None:
    spans = Spans(ParentBased(ALWAYS_OFF))
    seen: list[trace.SpanContext] = []
    wf = Workflow("trip")

    @wf.step(retry=2)
    def book(ctx: Context) -> None:
        seen.append(trace.get_current_span().get_span_context())

    make_driver(TracingHook(spans.provider)).run(wf)
    assert spans.all() == ()
    assert seen[0].is_valid
    assert not seen[0].trace_flags.sampled
    assert not trace.get_current_span().get_span_context().is_valid


class Heard:
    """Passes on what a hook is told, and keeps the names of it."""

    def __init__(self, hook: TracingHook) -> None:
        self.wants = hook.wants
        self.hook = hook
        self.events: list[str] = []

    def __call__(self, event: Any) -> object:
        self.events.append(type(event).__name__)
        return self.hook(event)


def test_of_an_unsampled_run_no_event_is_built_but_what_its_caller_must_learn(
    make_driver: MakeDriver, spans: Spans
) -> None:
    heard = Heard(TracingHook(Spans(ALWAYS_OFF).provider))
    wf, driver, ids = trip().wf, make_driver(heard), list[str]()
    for key in (None, "T-1", "T-1"):
        with spans.span("caller"):
            ids.append(driver.run(wf, idempotency_key=key).id)
        heard.events.append("")
    assert heard.events == [
        *("RunRequested", ""),
        *("RunRequested", "StoreCalled", "RunStarted", ""),
        *("RunRequested", "StoreCalled", "IdempotencyHit", ""),
    ]
    assert ids[1] == ids[2]
    assert [span.attributes["flowcore.run.id"] for span in spans.all()] == ids


def test_at_half_sampling_there_is_no_orphan_root(make_driver: MakeDriver) -> None:
    spans = Spans(ParentBased(TraceIdRatioBased(0.5)))
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None:
        with spans.span("SELECT seats"):
            pass

    driver = make_driver(TracingHook(spans.provider))
    for _ in range(100):
        driver.run(wf)
    roots = [span.name for span in spans.all() if span.parent is None]
    assert set(roots) == {"run trip"}
    assert 10 < len(roots) < 90
    assert len(spans.all()) == 3 * len(roots)


def test_links_never_point_at_an_unsampled_run(make_driver: MakeDriver, spans: Spans) -> None:
    wf = trip().wf
    driver = make_driver(TracingHook(spans.provider))
    unsampled = trace.NonRecordingSpan(
        trace.SpanContext(0x1, 0x2, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.DEFAULT))
    )
    with trace.use_span(unsampled):
        driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    hit = spans["idempotency hit trip"]
    assert hit.links == ()
    assert hit.attributes["flowcore.original_run.sampled"] is False


def test_without_an_sdk_nothing_happens_and_the_callers_trace_continues(make_driver: MakeDriver) -> None:
    caller = trace.SpanContext(0x1, 0x2, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))
    seen: list[trace.SpanContext] = []
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: seen.append(trace.get_current_span().get_span_context()))
    driver = make_driver(TracingHook(trace.NoOpTracerProvider()))
    with trace.use_span(trace.NonRecordingSpan(caller)):
        driver.run(wf)
    assert seen == [caller]


# -- limits and hostile input ------------------------------------------------------------------------------------------


def test_past_max_step_spans_only_steps_that_need_attention_have_spans(make_driver: MakeDriver, spans: Spans) -> None:
    wf = Workflow("long")
    before: Any = ()
    for number in range(6):
        name = f"s{number}"
        before = wf.add_step(name, lambda ctx: None, depends_on=before, compensate=lambda ctx: None)
    left = itertools.count()

    @wf.step(depends_on=before, retry=2)
    def flaky(ctx: Context) -> None:
        if not next(left):
            raise OSError("once")

    @wf.step(depends_on=flaky)
    def fails(ctx: Context) -> None:
        if ctx["fail"]:
            raise ValueError("at the end")

    driver = make_driver(TracingHook(spans.provider, max_step_spans=2))
    driver.run(wf, {"fail": False})
    assert spans.tree().splitlines() == [
        "run long",
        "├── step s0",
        "├── step s1 → depends_on step s0",
        "└── step flaky",
        "    ├── attempt flaky ERROR OSError ! OSError",
        "    ├── backoff flaky",
        "    └── attempt flaky",
    ]
    assert spans["run long"].attributes["flowcore.run.untraced_steps"] == 5
    assert spans["run long"].attributes["flowcore.run.critical_path.length"] == 8

    spans.clear()
    with pytest.raises(ValueError, match="at the end"):
        driver.run(wf, {"fail": True})
    undone = [span for span in spans.all() if span.name.startswith("compensate ")]
    assert len(undone) == 6
    assert all(len(span.links) == 1 for span in undone)
    assert len([span for span in spans.all() if span.name.startswith("step ")]) == 7  # all but flaky


def test_links_and_lists_of_a_step_with_many_dependencies_are_limited(driver: Driver, spans: Spans) -> None:
    wf = Workflow("wide", max_parallel=1)  # otherwise, threads may note the ends of steps in another order
    many = [wf.add_step(f"s{number}", lambda ctx: None) for number in range(100)]
    wf.add_step("join", lambda ctx: None, depends_on=many)
    driver.run(wf)
    join = spans["step join"]
    assert len(join.links) == 16
    assert len(join.attributes["flowcore.step.depends_on"]) == 64
    assert join.attributes["flowcore.step.depends_on.count"] == 100
    ends = {span.context.span_id: span.end_time or 0 for span in spans.all() if span.context is not None}
    latest = sorted(end for span_id, end in ends.items() if span_id in {link.context.span_id for link in join.links})
    others = [spans[f"step {step.name}"].end_time or 0 for step in many]
    assert latest == sorted(others)[-16:]


def test_hostile_names_and_errors_are_clipped_and_encodable(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    class Hostile(Exception):
        def __str__(self) -> str:
            return "\ud800" * 100_000

    def fail(ctx: Context) -> None:
        raise Hostile

    wf.add_step("x" * 100_000, lambda ctx: None)
    wf.add_step("pay \ud800", fail, depends_on="x" * 100_000)
    with pytest.raises(Hostile):
        driver.run(wf)
    for span in spans.all():
        span.to_json().encode()
        assert len(span.name) < 140
        assert len(span.status.description or "") <= 1024
    assert spans["step pay \\ud800"].events[0].attributes["exception.message"].endswith("…" + "", 0, 1016)


@pytest.mark.parametrize(
    "carrier", [{}, {"traceparent": "00-nonsense"}, {"traceparent": 7}, {"traceparent": "00-" * 999}]
)
def test_a_malformed_stored_context_fails_nothing(spans: Spans, carrier: Any) -> None:
    hook, state = TracingHook(spans.provider), {}
    context = copy_context()  # as a run has one of its own
    context.run(hook, RunRequested("trip", "r2", 1.0, state, "k", 1e9, {}, submitted=False))
    context.run(hook, IdempotencyHit("trip", "r2", 1.5, state, "k", "replayed", "r1", carrier, None))
    hit = spans["idempotency hit trip"]
    assert hit.links == ()
    assert hit.attributes["flowcore.original_run.sampled"] is False
    assert seconds(hit) == 0.5


def test_hooks_that_raise_beside_it_change_no_span(make_driver: MakeDriver, spans: Spans, caplog: Any) -> None:
    def raises(event: Event) -> None:
        raise RuntimeError("hook")

    class Swallows:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> bool:
            raise RuntimeError("scope")

    def scopes(event: Event) -> Any:
        return Swallows() if isinstance(event, RunStarted) else None

    with caplog.at_level(logging.CRITICAL, "flowcore"):
        make_driver(raises, TracingHook(spans.provider), scopes).run(trip().wf)
    assert spans.tree().splitlines()[0] == "run trip"
    assert len(spans.all()) == 3


def test_an_exporter_that_raises_changes_nothing_for_the_run(make_driver: MakeDriver, caplog: Any) -> None:
    class Raises(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            raise OSError("collector is down")

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Raises()))
    with caplog.at_level(logging.CRITICAL):
        assert make_driver(TracingHook(provider)).run(trip().wf)["pay"] == "paid"


def test_two_hooks_with_two_providers_do_not_mix(make_driver: MakeDriver, spans: Spans) -> None:
    others = Spans()
    make_driver(TracingHook(spans.provider), TracingHook(others.provider)).run(trip().wf)
    for each in (spans, others):
        assert len(each.all()) == 3
        trace_id = each["run trip"].context.trace_id
        assert {span.context.trace_id for span in each.all()} == {trace_id}
        assert all(span.parent.span_id == each["run trip"].context.span_id for span in each.all() if span.parent)


def test_kinds(driver: Driver, spans: Spans) -> None:
    driver.submit(trip().wf)
    kinds = {span.name: span.kind for span in spans.all()}
    assert kinds == {
        "submit trip": SpanKind.PRODUCER,
        "run trip": SpanKind.CONSUMER,
        "step book": SpanKind.INTERNAL,
        "step pay": SpanKind.INTERNAL,
    }
