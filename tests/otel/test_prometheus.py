"""What a scrape shows, read over HTTP."""

import itertools
import logging
import math
import re
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.samples import Sample

from flowcore import Context, Engine, Workflow
from flowcore.events import Event, RunStarted
from flowcore_otel import PrometheusHook, TracingHook, names

from .conftest import MakeDriver, Spans, trip

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
Labels = frozenset[tuple[str, str]]


class Scrape:
    """All samples of one scrape."""

    def __init__(self, samples: Mapping[tuple[str, Labels], Sample]) -> None:
        self.samples = samples

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())].value

    def get(self, name: str, **labels: str) -> float | None:
        sample = self.samples.get((name, frozenset(labels.items())))
        return None if sample is None else sample.value

    def exemplars(self, name: str, **labels: str) -> list[dict[str, str]]:
        """Of all samples of that name with at least these labels."""
        return [
            dict(sample.exemplar.labels)
            for (sampled, pairs), sample in self.samples.items()
            if sampled == name and pairs >= labels.items() and sample.exemplar is not None
        ]


class Shown(CollectorRegistry):
    """What the one server of this module serves: the registry of the test that asks."""

    registry: CollectorRegistry
    url: str

    def collect(self) -> Iterable[Metric]:
        return self.registry.collect()


SHOWN = Shown()


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    server, thread = start_http_server(0, "127.0.0.1", SHOWN)
    SHOWN.url = f"http://127.0.0.1:{server.server_port}/metrics"
    yield
    server.shutdown()
    server.server_close()
    thread.join(5)


def scrape(registry: CollectorRegistry, accept: str = OPEN_METRICS) -> Scrape:
    SHOWN.registry = registry
    request = urllib.request.Request(SHOWN.url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
    families = (text_string_to_metric_families if accept == OPEN_METRICS else plain_families)(text)
    return Scrape({(s.name, frozenset(s.labels.items())): s for family in families for s in family.samples})


def test_errors_of_hooks_and_capped_series_are_counted_from_zero(registry: CollectorRegistry) -> None:
    """rate() and increase() miss the step from no sample to 1."""

    def grumpy(event: object) -> None:
        raise ValueError("again")

    with Engine(hooks=[grumpy, PrometheusHook(registry)]):
        shown = scrape(registry)
    hooks = (grumpy.__qualname__, "PrometheusHook")
    assert [shown.value("flowcore_hook_duration_seconds_total", hook=hook) for hook in hooks] == [0, 0]
    assert shown.value("flowcore_hook_errors_total", hook="PrometheusHook") == 0
    assert registry.get_sample_value("flowcore_hook_errors_total", {"hook": grumpy.__qualname__}) is not None
    assert shown.value("flowcore_telemetry_capped_total", hook="PrometheusHook") == 0


def test_the_numbers_of_an_afternoon(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    driver = make_driver(PrometheusHook(registry))
    good, flaky, bad = trip().wf, trip(fails=2, attempts=3).wf, trip(fails=9, attempts=2).wf
    driver.run(good, idempotency_key="T-1")
    driver.run(good, idempotency_key="T-1")
    driver.run(flaky)
    with pytest.raises(ValueError, match="declined"):
        driver.run(bad)
    shown = scrape(registry)

    def runs(outcome: str) -> float:
        return shown.value("flowcore_run_duration_seconds_count", workflow="trip", outcome=outcome)

    def steps(step: str, outcome: str) -> float:
        return shown.value("flowcore_step_duration_seconds_count", workflow="trip", step=step, outcome=outcome)

    assert (runs("success"), runs("compensated"), runs("failure")) == (2, 1, 0)
    assert (steps("book", "success"), steps("pay", "success"), steps("pay", "failure")) == (3, 2, 1)
    assert shown.value("flowcore_step_retries_total", workflow="trip", step="pay") == 3
    assert shown.value("flowcore_step_retries_total", workflow="trip", step="book") == 0
    assert shown.value("flowcore_compensations_total", workflow="trip", step="book", outcome="success") == 1
    assert shown.value("flowcore_idempotency_hits_total", workflow="trip", outcome="replayed") == 1
    assert shown.value("flowcore_runs_active", workflow="trip") == 0
    assert shown.value("flowcore_steps_ready", workflow="trip") == 0
    attempts = "flowcore_step_attempts_total"
    assert shown.value(attempts, workflow="trip", step="pay", outcome="failure") == 4
    assert shown.value(attempts, workflow="trip", step="pay", outcome="success") == 2
    errors = {"workflow": "trip", "step": "pay", "error_type": "ValueError"}
    assert shown.value("flowcore_step_errors_total", **errors) == 4
    assert shown.value("flowcore_run_oldest_start_timestamp_seconds", workflow="trip") == math.inf
    assert abs(shown.value("flowcore_run_last_success_timestamp_seconds", workflow="trip") - time.time()) < 60
    assert shown.value("flowcore_workflow_info", workflow="trip", steps="2") == 1


def test_durations_are_the_events_own(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    reported: list[Any] = []
    driver = make_driver(reported.append, PrometheusHook(registry))
    driver.run(trip(fails=1, attempts=2).wf)
    shown = scrape(registry)
    by_kind = {(type(event).__name__, getattr(event, "step", None)): event for event in reported}
    run, pay = by_kind["RunFinished", None], by_kind["StepFinished", "pay"]
    of_run = shown.value("flowcore_run_duration_seconds_sum", workflow="trip", outcome="success")
    of_pay = shown.value("flowcore_step_duration_seconds_sum", workflow="trip", step="pay", outcome="success")
    assert of_run == pytest.approx(run.duration)
    assert of_pay == pytest.approx(pay.duration)
    bucket = {"workflow": "trip", "step": "pay", "outcome": "success", "le": "60.0"}
    assert shown.value("flowcore_step_duration_seconds_bucket", **bucket) == 1


def test_runs_in_flight_are_active_and_the_oldest_is_known(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    wf = Workflow("trip")
    started, go_on = threading.Semaphore(0), threading.Event()

    @wf.step
    def book(ctx: Context) -> None:
        started.release()
        assert go_on.wait(10)

    driver = make_driver(PrometheusHook(registry))
    before = time.time()
    runs = [threading.Thread(target=driver.run, args=(wf,)) for _ in range(3)]
    for run in runs:
        run.start()
    for _ in runs:
        assert started.acquire(timeout=10)
    during = scrape(registry)
    go_on.set()
    for run in runs:
        run.join(10)
    assert during.value("flowcore_runs_active", workflow="trip") == 3
    assert before - 1 < during.value("flowcore_run_oldest_start_timestamp_seconds", workflow="trip") < time.time()
    assert scrape(registry).value("flowcore_runs_active", workflow="trip") == 0


def test_steps_that_a_failure_kept_from_starting_do_not_stay_ready(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    wf = Workflow("trip", max_parallel=1)
    waiting: list[float | None] = []

    def fail(ctx: Context) -> None:
        waiting.append(registry.get_sample_value("flowcore_steps_ready", {"workflow": "trip"}))
        raise ValueError("declined")

    for number in range(5):
        wf.add_step(f"s{number}", fail)
    with pytest.raises(ValueError, match="declined"):
        make_driver(PrometheusHook(registry)).run(wf)
    assert waiting == [4]
    assert scrape(registry).value("flowcore_steps_ready", workflow="trip") == 0


def test_a_skipped_step_is_ready_no_longer_and_took_no_time(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    wf = Workflow("trip")
    wf.add_step("insure", lambda ctx: None, when=lambda ctx: False)
    make_driver(PrometheusHook(registry)).run(wf)
    shown = scrape(registry)
    assert shown.value("flowcore_steps_ready", workflow="trip") == 0
    assert shown.value("flowcore_step_duration_seconds_count", workflow="trip", step="insure", outcome="success") == 0


def test_series_are_there_at_0_as_soon_as_a_workflow_is_known(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    make_driver(PrometheusHook(registry), workflows=[trip().wf])
    shown = scrape(registry)
    for outcome in names.RUN_OUTCOMES:
        assert shown.value("flowcore_run_duration_seconds_count", workflow="trip", outcome=outcome) == 0
    for outcome in names.IDEMPOTENCY_OUTCOMES:
        assert shown.value("flowcore_idempotency_hits_total", workflow="trip", outcome=outcome) == 0
    for step in ("book", "pay"):
        assert shown.value("flowcore_step_retries_total", workflow="trip", step=step) == 0
        assert shown.value("flowcore_compensations_total", workflow="trip", step=step, outcome="failure") == 0
        assert shown.value("flowcore_step_duration_seconds_count", workflow="trip", step=step, outcome="failure") == 0
        assert shown.get("flowcore_step_duration_seconds_count", workflow="trip", step=step, outcome="timeout") is None
    assert shown.get("flowcore_run_last_success_timestamp_seconds", workflow="trip") is None


@pytest.mark.parametrize("first", ["tracing", "prometheus"])
def test_exemplars_lead_to_the_spans_whichever_hook_comes_first(
    make_driver: MakeDriver, registry: CollectorRegistry, spans: Spans, first: str
) -> None:
    hooks = [TracingHook(spans.provider), PrometheusHook(registry)]
    driver = make_driver(*(hooks if first == "tracing" else reversed(hooks)))
    wf = trip(fails=2, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf)
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    shown = scrape(registry)

    def of(span: Any) -> dict[str, str]:
        return {"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"}

    failed_run, failed_step = spans.named("run trip")[0], spans.named("step pay")[0]
    last_failure = spans.named("attempt pay")[1]
    assert shown.exemplars("flowcore_run_duration_seconds_bucket", outcome="compensated") == [of(failed_run)]
    assert shown.exemplars("flowcore_step_duration_seconds_bucket", outcome="failure") == [of(failed_step)]
    failures = shown.exemplars("flowcore_step_attempt_duration_seconds_bucket", step="pay", outcome="failure")
    assert of(last_failure) in failures
    assert shown.exemplars("flowcore_step_errors_total") == [of(last_failure)]
    assert shown.exemplars("flowcore_step_retries_total") == [of(spans.named("attempt pay")[0])]
    assert shown.exemplars("flowcore_compensations_total") == [of(spans["compensate book"])]
    hits = shown.exemplars("flowcore_idempotency_hits_total", outcome="replayed")
    assert hits == [of(spans["idempotency hit trip"])]


def test_without_tracing_hook_the_callers_span_is_the_exemplar(
    make_driver: MakeDriver, registry: CollectorRegistry, spans: Spans
) -> None:
    driver = make_driver(PrometheusHook(registry))
    with spans.span("POST /trips") as caller:
        driver.run(trip().wf)
        driver.submit(trip(fails=1).wf, check=False)
    context = caller.get_span_context()
    expected = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    shown = scrape(registry)
    assert shown.exemplars("flowcore_run_duration_seconds_bucket", outcome="success") == [expected]
    assert shown.exemplars("flowcore_run_duration_seconds_bucket", outcome="compensated") == [expected]


def test_no_exemplars_where_they_are_switched_off_or_nothing_is_sampled(
    make_driver: MakeDriver, registry: CollectorRegistry, spans: Spans
) -> None:
    make_driver(TracingHook(spans.provider), PrometheusHook(registry, exemplars=False)).run(trip().wf)
    assert not any(sample.exemplar for sample in scrape(registry).samples.values())
    other = CollectorRegistry()
    make_driver(PrometheusHook(other)).run(trip().wf)
    assert not any(sample.exemplar for sample in scrape(other).samples.values())


def test_the_plain_text_format_works_too(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    make_driver(PrometheusHook(registry)).run(trip().wf)
    shown = scrape(registry, accept="text/plain")
    assert shown.value("flowcore_run_duration_seconds_count", workflow="trip", outcome="success") == 1


def test_a_second_hook_on_a_registry_reuses_its_metrics(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    make_driver(PrometheusHook(registry)).run(trip().wf)
    make_driver(PrometheusHook(registry)).run(trip().wf)
    shown = scrape(registry)
    assert shown.value("flowcore_run_duration_seconds_count", workflow="trip", outcome="success") == 2


def test_errors_of_hooks_are_counted(make_driver: MakeDriver, registry: CollectorRegistry, caplog: Any) -> None:
    class Broken:
        wants = frozenset({RunStarted})

        def __call__(self, event: Event) -> None:
            raise RuntimeError("broken")

    driver = make_driver(Broken(), PrometheusHook(registry))
    with caplog.at_level(logging.CRITICAL, "flowcore"):
        driver.run(trip().wf)
        driver.run(trip().wf)
    errors = {
        dict(labels)["hook"]: sample.value
        for (name, labels), sample in scrape(registry).samples.items()
        if name == "flowcore_hook_errors_total"
    }
    assert errors == {Broken.__qualname__: 2, "PrometheusHook": 0}


# -- limits and hostile input ------------------------------------------------------------------------------------------


def test_past_max_series_steps_share_one_series(
    make_driver: MakeDriver, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    wf = Workflow("wide")
    for number in range(10):
        wf.add_step(f"s{number}", lambda ctx: None)
    driver = make_driver(PrometheusHook(registry, max_series=4))
    driver.run(wf)
    driver.run(wf)
    shown = scrape(registry)
    count = "flowcore_step_duration_seconds_count"
    assert shown.value(count, workflow="wide", step="s0", outcome="success") == 2
    assert shown.value(count, workflow="wide", step="_other", outcome="success") == 12
    steps = {dict(labels).get("step") for _, labels in shown.samples} - {None}
    assert steps == {"s0", "s1", "s2", "s3", "_other"}
    assert shown.value("flowcore_telemetry_capped_total", hook="PrometheusHook") > 0
    assert len([record for record in caplog.records if "label step" in record.message]) == 1


def test_past_200_workflows_and_50_error_types_there_is_one_series_for_the_rest(
    make_driver: MakeDriver, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make_driver(PrometheusHook(registry))
    kinds = [type(f"Error{number}", (Exception,), {}) for number in range(60)]
    numbers = itertools.count()

    def fail(ctx: Context) -> None:
        raise kinds[next(numbers)]

    failing = Workflow("failing")
    failing.add_step("fail", fail)
    for kind in kinds:
        with pytest.raises(kind):
            driver.run(failing)
    for number in range(210):
        driver.run(Workflow(f"w{number}"))
    # The registry is asked, because to parse 20,000 lines takes ten seconds.
    shown = Scrape({(s.name, frozenset(s.labels.items())): s for family in registry.collect() for s in family.samples})
    errors = "flowcore_step_errors_total"
    assert shown.value(errors, workflow="failing", step="fail", error_type="_other") == 10
    assert shown.value("flowcore_run_duration_seconds_count", workflow="_other", outcome="success") == 11
    assert shown.value("flowcore_runs_active", workflow="_other") == 0
    # A survey of the store, if there was one already, counts unknown workflows too.
    assert len({dict(labels).get("workflow") for _, labels in shown.samples} - {None, "_unknown"}) == 201
    assert len(caplog.records) == 2


def test_hostile_names_are_followed_by_a_good_scrape(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    wf = Workflow('evil "\n\\ \ud800')
    wf.add_step("\ud800" * 1_000_000, lambda ctx: None)
    wf.add_step('a"b\nc\\', lambda ctx: None)
    make_driver(PrometheusHook(registry)).run(wf)
    shown = scrape(registry)
    steps = {
        dict(labels)["step"] for name, labels in shown.samples if name == "flowcore_step_wait_duration_seconds_sum"
    }
    assert 'a"b\nc\\' in steps
    assert max(map(len, steps)) == 128


def test_no_series_carries_an_id_or_a_key(make_driver: MakeDriver, registry: CollectorRegistry, spans: Spans) -> None:
    driver = make_driver(TracingHook(spans.provider), PrometheusHook(registry, exemplars=False))
    wf = trip(fails=2, attempts=2).wf
    ids = [driver.run(wf, idempotency_key="secret-key", check=False).id]
    ids += [driver.run(wf, idempotency_key="secret-key").id, driver.run(wf, idempotency_key="secret-key").id]
    text = repr(sorted((name, sorted(labels)) for name, labels in scrape(registry).samples))
    assert not any(run_id in text for run_id in ids)
    assert "secret-key" not in text
    assert not re.search(r"[0-9a-f]{16}", text)


def test_every_series_is_in_the_catalogue_with_its_labels(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    driver = make_driver(PrometheusHook(registry))
    driver.run(trip(fails=2, attempts=2).wf, check=False)
    driver.run(trip().wf)
    catalogue = {metric.prometheus: metric for metric in names.METRICS}
    for name, labels in scrape(registry).samples:
        metric = catalogue.get(name) or catalogue.get(f"{family(name)}_total") or catalogue[family(name)]
        assert {label for label, _ in labels} - {"le"} == set(metric.labels)


def family(sample: str) -> str:
    return re.sub(r"_(bucket|count|sum|created)$", "", sample)


def test_the_catalogue_is_complete_and_every_name_unique() -> None:
    listed = [value for value in vars(names).values() if isinstance(value, names.Metric)]
    assert sorted(metric.name for metric in listed) == sorted(metric.name for metric in names.METRICS)
    assert len({metric.prometheus for metric in names.METRICS}) == len(names.METRICS)
    assert {label for metric in names.METRICS for label in metric.labels} == set(names.LABELS)
    assert set(names.LABELS.values()) >= {
        "flowcore.workflow.name",
        "flowcore.step.name",
        "flowcore.outcome",
        "error.type",
    }
    assert tuple(sorted(names.BUCKETS)) == names.BUCKETS
