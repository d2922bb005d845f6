"""What PrometheusHook can be told: buckets, detail, version; and that its counts begin at 0."""

import time
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Engine, Workflow
from flowcore.events import MaintenanceFinished
from flowcore_otel import MetricsHook, PrometheusHook, names

from .conftest import MakeDriver, trip
from .test_sinks import points

Scrape = dict[tuple[str, ...], float]


def scrape(registry: CollectorRegistry) -> Scrape:
    return {
        (sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def increase(before: Scrape, after: Scrape, name: str) -> float:
    """What increase() makes of two scrapes: a series that is missing from the first one counts as nothing."""
    return sum(after[series] - before[series] for series in before if series[0] == name)


@pytest.mark.parametrize("attempts", [1, 3])
def test_where_the_time_of_a_first_run_goes(
    make_driver: MakeDriver, registry: CollectorRegistry, attempts: int
) -> None:
    wf = trip(attempts=attempts).wf
    reported: list[Any] = []
    driver = make_driver(PrometheusHook(registry), reported.append, workflows=[wf])
    before = scrape(registry)
    driver.run(wf)
    after = scrape(registry)
    seconds = sum(event.duration for event in reported if type(event).__name__ == "StepFinished")
    assert increase(before, after, "flowcore_step_duration_seconds_sum") == pytest.approx(seconds)
    assert increase(before, after, "flowcore_step_backoff_seconds_total") == 0
    assert increase(before, after, "flowcore_step_attempts_total") == 2
    assert increase(before, after, "flowcore_runs_total") == 1
    assert increase(before, after, "flowcore_step_wait_duration_seconds_count") == 2


def test_where_the_time_of_a_first_run_goes_whose_steps_time_out(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: time.sleep(0.05), timeout=0.01, retry=2)
    wf.add_step("b", lambda ctx: time.sleep(0.05), timeout=0.01, depends_on="a")
    reported: list[Any] = []
    driver = make_driver(PrometheusHook(registry), reported.append, workflows=[wf])
    before = scrape(registry)
    driver.run(wf, check=False)
    after = scrape(registry)
    ended = [event for event in reported if type(event).__name__ == "StepFinished"]
    attempts = [event for event in reported if type(event).__name__ == "AttemptFinished" and event.step == "a"]
    assert (attempts[0].outcome, ended[-1].outcome) == ("timeout", "timeout")
    assert increase(before, after, "flowcore_step_attempt_duration_seconds_count") == len(attempts)
    seconds = sum(event.duration for event in ended)
    assert increase(before, after, "flowcore_step_duration_seconds_sum") == pytest.approx(seconds)


def test_backoff_is_measured_by_itself(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    wf = trip(fails=2, attempts=3).wf
    driver = make_driver(PrometheusHook(registry), workflows=[wf])
    before = scrape(registry)
    driver.run(wf)
    after = scrape(registry)
    assert increase(before, after, "flowcore_step_backoff_seconds_total") >= 0.004
    assert increase(before, after, "flowcore_step_attempts_total") == 4


def test_whatever_is_counted_divided_or_subtracted_begins_at_0(registry: CollectorRegistry) -> None:
    wf = trip(attempts=3).wf
    with Engine(hooks=[PrometheusHook(registry)], workflows=[wf]) as engine:
        before = set(scrape(registry))
        engine.run(wf)
    late = {name for name, *_ in set(scrape(registry)) - before}
    assert {name for name in late if name.endswith(("_total", "_count", "_sum", "_bucket"))} == set()


def test_attempts_are_timed_where_there_may_be_several(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    make_driver(PrometheusHook(registry)).run(trip(attempts=2).wf)
    timed = {series for series in scrape(registry) if series[0] == "flowcore_step_attempt_duration_seconds_count"}
    assert {"step=pay" in series for series in timed} == {True}


def test_buckets_are_the_users_and_those_of_the_store_stay(
    registry: CollectorRegistry, make_driver: MakeDriver
) -> None:
    make_driver(PrometheusHook(registry, buckets=[0.5, 2])).run(trip().wf, idempotency_key="k")
    bounds: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds.setdefault(family.name, set()).add(sample.labels["le"])
    assert bounds["flowcore_run_duration_seconds"] == bounds["flowcore_step_duration_seconds"] == {"0.5", "2.0", "+Inf"}
    assert len(bounds["flowcore_store_operation_duration_seconds"]) == len(names.STORE_BUCKETS) + 1


def test_a_subclass_may_choose_among_the_events(registry: CollectorRegistry, make_driver: MakeDriver) -> None:
    class Some(PrometheusHook):
        def __call__(self, event: Any, /) -> None:
            if event.workflow != "noise":
                super().__call__(event)

    driver, noise = make_driver(Some(registry)), Workflow("noise")
    noise.add_step("a", lambda ctx: None)
    for wf in (trip().wf, noise):
        driver.run(wf)
    ended = {series[1:]: count for series, count in scrape(registry).items() if series[0] == "flowcore_runs_total"}
    assert ended["outcome=success", "workflow=trip"] == 1
    assert not any("workflow=noise" in labels for labels in ended)


@pytest.mark.parametrize("buckets", [[], [1, 1], [2, 1], [0, 1], [-1], [1, float("inf")], [float("nan")]])
def test_nonsense_for_buckets_is_refused(buckets: list[float], registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="buckets= must be rising numbers"):
        PrometheusHook(registry, buckets=buckets)


def test_hooks_on_one_registry_must_agree(registry: CollectorRegistry) -> None:
    nonsense: Any = "run"
    PrometheusHook(registry, buckets=[1, 2])
    PrometheusHook(registry, buckets=[1, 2])
    with pytest.raises(ValueError, match="with other buckets= or detail="):
        PrometheusHook(registry)
    with pytest.raises(ValueError, match="detail= must be"):
        PrometheusHook(registry, detail=nonsense)


def test_detail_workflow_has_one_series_for_all_steps(registry: CollectorRegistry, make_driver: MakeDriver) -> None:
    make_driver(PrometheusHook(registry, detail="workflow")).run(trip(fails=1, attempts=2).wf)
    shown = scrape(registry)
    steps = {label for series in shown for label in series if label.startswith("step=")}
    assert steps == {"step=_all"}
    count = ("flowcore_step_duration_seconds_count", "outcome=success", "step=_all", "workflow=trip")
    assert shown[count] == 2
    assert shown["flowcore_telemetry_capped_total", "hook=PrometheusHook"] == 0


@pytest.fixture
def resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop, service.version=1.4%2B0")


@pytest.mark.usefixtures("resource")
@pytest.mark.parametrize(("given", "shown"), [(None, "1.4+0"), ("2.0", "2.0")])
def test_the_services_version(registry: CollectorRegistry, given: str | None, shown: str) -> None:
    PrometheusHook(registry, version=given)
    reader = InMemoryMetricReader()
    MetricsHook(MeterProvider([reader]), version=given)
    assert registry.get_sample_value("flowcore_app_info", {"version": shown}) == 1
    (attributes,) = [point.attributes for metric, point in points(reader) if metric.name == "flowcore.app.info"]
    assert attributes == {"flowcore.version": shown}


def test_without_a_version_there_is_no_such_series(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    PrometheusHook(registry)
    assert not [series for series in scrape(registry) if series[0] == "flowcore_app_info"]


def test_the_limit_of_workers_is_the_sum_over_engines(registry: CollectorRegistry) -> None:
    hook = PrometheusHook(registry)
    with Engine(hooks=[hook], max_workers=3), Engine(hooks=[hook], max_workers=4):
        assert registry.get_sample_value("flowcore_workers_limit") == 7


def test_ends_are_remembered_by_outcome(registry: CollectorRegistry, make_driver: MakeDriver) -> None:
    driver = make_driver(PrometheusHook(registry))
    driver.run(trip().wf)
    driver.run(trip(fails=9).wf, check=False)
    ended = {
        outcome: registry.get_sample_value(
            "flowcore_run_last_end_timestamp_seconds", {"workflow": "trip", "outcome": outcome}
        )
        for outcome in names.RUN_OUTCOMES
    }
    assert {outcome for outcome, at in ended.items() if at is not None} == {"success", "compensated"}
    assert ended["success"] == registry.get_sample_value(
        "flowcore_run_last_success_timestamp_seconds", {"workflow": "trip"}
    )


def test_the_last_round_of_recovery_is_known_once_there_was_one(registry: CollectorRegistry) -> None:
    hook = PrometheusHook(registry)
    name = "flowcore_recovery_last_round_timestamp_seconds"
    hook(MaintenanceFinished("", "", 1.0, {}, "heartbeat", 0.1, None, 100.0))
    hook(MaintenanceFinished("", "", 1.0, {}, "recover", 0.1, OSError(), 101.0))
    assert registry.get_sample_value(name) is None
    hook(MaintenanceFinished("", "", 1.0, {}, "recover", 0.1, None, 102.0))
    assert registry.get_sample_value(name) == 102.0
