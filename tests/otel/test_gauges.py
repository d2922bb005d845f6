"""What engines report from time to time is shown while they are open: in Prometheus, in OpenTelemetry, and after a fork."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Context, Engine, Workflow
from flowcore.events import StoreSurveyed
from flowcore.stores import SQLiteStore
from flowcore_otel import MetricsHook, PrometheusHook, names

from .conftest import MakeDriver
from .test_sinks import compared, points

REPORTED = {names.STORE_RUNS, names.STORE_WAITING, names.SCHEDULE_NEXT, names.LAST_RECOVERY}


def until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_closed_engine_leaves_no_fire_that_is_due_no_round_of_recovery_and_no_runs_that_wait(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    reader, wf, store = InMemoryMetricReader(), Workflow("trip"), SQLiteStore(tmp_path / "runs.db")
    wf.add_step("book", lambda ctx: None)
    wf.wait("paid", depends_on="book")

    def shown() -> set[names.Metric]:
        return {metric for metric, _ in points(reader)} & REPORTED

    hooks = [PrometheusHook(registry), MetricsHook(MeterProvider([reader]))]
    Engine(store=store).run(wf, idempotency_key="k", until="waiting")
    with Engine(store=store, hooks=hooks, workflows=[wf], recover_every=0.05) as engine:
        engine.schedule(wf, every=86_400, name="daily")
        until(lambda: shown() == REPORTED)
        waiting = {"workflow": "trip", "status": "waiting"}
        assert registry.get_sample_value("flowcore_store_runs", waiting) == 1
    assert not shown()
    assert compared(reader, registry) > 30
    assert not {family.name for family in registry.collect() if family.samples} & {one.prometheus for one in REPORTED}
    store.close()


def test_of_several_open_engines_the_largest_number_of_runs_is_shown(registry: CollectorRegistry) -> None:
    hook, is_open = PrometheusHook(registry), [True, True]

    def counted(engine: Callable[[], bool], held: int) -> None:
        hook(StoreSurveyed("", "", 1.0, {}, {("trip", "held"): held}, {}, engine))

    def shown() -> float | None:
        return registry.get_sample_value("flowcore_store_runs", {"workflow": "trip", "status": "held"})

    def first() -> bool:
        return is_open[0]

    def second() -> bool:
        return is_open[1]

    counted(first, 2)
    counted(second, 0)  # of another store, for example of another tenant
    assert shown() == 2
    counted(first, 1)
    assert shown() == 1
    is_open[0] = False
    assert shown() == 0
    is_open[1] = False
    assert shown() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_shows_the_threads_and_schedules_of_the_engine_that_it_uses() -> None:
    code = """
import os, sys, time
from prometheus_client import REGISTRY
from flowcore import Context, Engine, Workflow
from flowcore_otel import PrometheusHook

wf = Workflow("trip")
wf.add_step("book", lambda ctx: None)
engine = Engine(hooks=[PrometheusHook()], max_workers=3, workflows=[wf])
engine.schedule(wf, every=86_400, name="daily")
of = {"workflow": "trip", "schedule": "daily"}

def fire():
    return REGISTRY.get_sample_value("flowcore_schedule_next_fire_timestamp_seconds", of)

planned = fire()
pid = os.fork()
if not pid:
    limit = time.monotonic() + 20
    while fire() is None and time.monotonic() < limit:
        time.sleep(0.01)
    engine.run(wf)
    engine.run(wf)
    print(REGISTRY.get_sample_value("flowcore_workers_limit"), fire() == planned, flush=True)
    engine.close()
    print(REGISTRY.get_sample_value("flowcore_workers_limit"), fire(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
engine.close()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout, done.stderr) == ("3 True\n0 None\n", "")


def test_the_clock_of_the_process_is_shown(registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    PrometheusHook(registry)
    MetricsHook(MeterProvider([reader]))
    before = time.time()
    shown = registry.get_sample_value(names.CLOCK.prometheus)
    (point,) = (point for metric, point in points(reader) if metric is names.CLOCK)
    assert shown is not None
    assert before <= shown <= point.value <= time.time()


@pytest.mark.parametrize(
    ("workers", "max_parallel", "held_back"),
    [(8, 1, {"threads": 2, "asyncio": 2}), (1, None, {"threads": 0, "asyncio": 2}), (8, None, {})],
)
def test_ready_steps_that_wait_for_another_step_and_not_for_a_worker_are_held_back(
    make_driver: MakeDriver,
    registry: CollectorRegistry,
    workers: int,
    max_parallel: int | None,
    held_back: dict[str, int],
) -> None:
    driver = make_driver(PrometheusHook(registry), max_workers=workers)
    wf, shown = Workflow("trip", max_parallel=max_parallel), list[tuple[float | None, ...]]()
    both = names.STEPS_READY, names.STEPS_HELD_BACK
    all_run = threading.Barrier(3)

    def work(ctx: Context) -> None:
        if not held_back:
            all_run.wait(20)
        shown.append(tuple(registry.get_sample_value(metric.prometheus, {"workflow": "trip"}) for metric in both))

    for name in ("book", "pay", "mail"):
        wf.add_step(name, work)
    driver.run(wf)
    assert shown[0] == ((2, held_back[driver.kind]) if held_back else (0, 0))
    assert [registry.get_sample_value(metric.prometheus, {"workflow": "trip"}) for metric in both] == [0, 0]
