"""Several processes: prometheus_client's multiprocess mode, with real forked workers, and what a fork leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# These processes fork while threads run, which is what is tested; CPython 3.12 and newer warn of it.
PYTHON = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c"]

# A parent that forks while a run of its own is in flight, as a preforking server might. The workers report over pipes.
SERVER = """
import os, sys, threading, time
from flowcore import Engine, Workflow
from flowcore_otel import PrometheusHook
from prometheus_client import CollectorRegistry, REGISTRY, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

hook = PrometheusHook()
go_on, started = threading.Event(), threading.Event()
orders, slow = Workflow("orders"), Workflow("slow", max_parallel=1)
orders.add_step("charge", lambda ctx: None)
orders.add_step("ship", lambda ctx: None, depends_on="charge")
slow.add_step("wait", lambda ctx: (started.set(), go_on.wait(30)))
slow.add_step("ready", lambda ctx: None)

def show(title):
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print("#", title)
    print(generate_latest(registry).decode(), flush=True)

def worker(runs, stay):
    ready, told = os.pipe()
    mine, leave = os.pipe()
    pid = os.fork()
    if pid:
        return pid, ready, leave
    try:
        started.clear()
        engine = Engine(hooks=[hook], max_workers=1)
        for _ in range(runs):
            engine.run(orders)
        if runs == 3:
            engine.schedule(orders, every=3600, name="hourly")
        if stay:
            future = engine.submit(slow)
            started.wait(30)
            engine.submit(slow)
        os.write(told, b"!")
        os.read(mine, 1)
    finally:
        os._exit(0)

engine = Engine(hooks=[hook], max_workers=1)
engine.run(orders)
future = engine.submit(slow)
assert started.wait(30)
queued = engine.submit(slow)
workers = [worker(2, False), worker(3, False), worker(0, True)]
for pid, ready, leave in workers:
    assert os.read(ready, 1) == b"!"
show("with two runs in flight")
for pid, ready, leave in workers:
    os.write(leave, b"!")
    os.waitpid(pid, 0)
    mark_process_dead(pid)
go_on.set()
future.result()
queued.result()
show("after all")
"""


def scrapes(output: str) -> list[dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    texts = ["".join(part.splitlines(keepends=True)[1:]) for part in output.split("# with ")[1:]]
    assert len(texts) == 1
    return [
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        for text in texts[0].split("# after all\n")
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("metrics"))}
    done = subprocess.run([*PYTHON, SERVER], env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return scrapes(done.stdout)


def test_counts_are_sums_over_all_workers(seen) -> None:
    for scrape in seen:
        runs = frozenset({("workflow", "orders"), ("outcome", "success")})
        assert scrape["flowcore_run_duration_seconds_count", runs] == 1 + 2 + 3
        steps = frozenset({("workflow", "orders"), ("step", "ship"), ("outcome", "success")})
        assert scrape["flowcore_step_duration_seconds_count", steps] == 1 + 2 + 3


def test_runs_in_flight_are_those_of_living_processes_each_counted_once(seen) -> None:
    # The parent's run was in flight when it forked: it is no run of its children.
    slow = frozenset({("workflow", "slow")})
    assert [scrape["flowcore_runs_active", slow] for scrape in seen] == [2, 0]
    assert [scrape["flowcore_steps_ready", slow] for scrape in seen] == [2, 0]


def test_queued_runs_are_those_of_living_processes_each_counted_once(seen) -> None:
    slow = frozenset({("workflow", "slow")})
    assert [scrape["flowcore_runs_queued", slow] for scrape in seen] == [2, 0]
    # The worker that is gone began one run, and the parent both of its own.
    assert [scrape["flowcore_run_queue_duration_seconds_count", slow] for scrape in seen] == [2, 3]


def test_a_schedule_has_a_next_fire_while_a_process_that_has_it_lives(seen) -> None:
    hourly = (
        "flowcore_schedule_next_fire_timestamp_seconds",
        frozenset({("workflow", "orders"), ("schedule", "hourly")}),
    )
    assert [hourly in scrape for scrape in seen] == [True, False]


def test_the_oldest_start_is_never_the_epoch(seen) -> None:
    during, after = (
        [scrape["flowcore_run_oldest_start_timestamp_seconds", frozenset({("workflow", flow)})] for scrape in seen]
        for flow in ("slow", "orders")
    )
    assert during[0] > 1e9
    assert during[1] == float("inf")
    assert after == [float("inf")] * 2


def test_what_is_always_1_is_1(seen) -> None:
    for scrape in seen:
        assert scrape["flowcore_workflow_info", frozenset({("workflow", "orders"), ("steps", "2")})] == 1
        (build,) = (value for (name, _), value in scrape.items() if name == "flowcore_build_info")
        assert build == 1


def test_a_child_that_shows_its_own_registry_begins_without_its_parents_runs(tmp_path: Path) -> None:
    code = (
        SERVER.split("def show", maxsplit=1)[0]
        + """
from flowcore.events import EngineStarted, StoreSurveyed

engine = Engine(hooks=[hook], max_workers=1)
future = engine.submit(slow)
assert started.wait(30)
queued = engine.submit(orders)
hook(EngineStarted("", "", 1.0, {}, lambda: (1, 0), ()))
hook(StoreSurveyed("", "", 1.0, {}, {("slow", "held"): 1}))

def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels or {"workflow": "slow"})

def store_and_threads():
    held = value("flowcore_store_runs", workflow="slow", status="held")
    return held, value("flowcore_workers", state="busy") > 0

assert value("flowcore_runs_active") == 1
assert store_and_threads() == (1.0, True)
assert value("flowcore_runs_queued", workflow="orders") == 1
pid = os.fork()
if not pid:
    print(value("flowcore_runs_queued", workflow="orders"), value("flowcore_runs_active"), value("flowcore_run_oldest_start_timestamp_seconds"), flush=True)
    print(*store_and_threads(), flush=True)
    Engine(hooks=[hook]).run(orders)
    print(value("flowcore_runs_active"), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
go_on.set()
queued.result()
print(value("flowcore_runs_active"), flush=True)
"""
    )
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout, done.stderr) == ("0 0 inf\nNone False\n0\n0\n", "")


def test_a_child_that_exports_metrics_begins_without_its_parents_runs() -> None:
    code = (
        SERVER.split("def show", maxsplit=1)[0].replace("hook = PrometheusHook()", "")
        + """
from flowcore_otel import MetricsHook
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
hook = MetricsHook(MeterProvider([reader]))

def show(who):
    (resource,) = reader.get_metrics_data().resource_metrics
    points = {
        (metric.name, point.attributes.get("flowcore.workflow.name")): point.value
        for metric in resource.scope_metrics[0].metrics
        for point in metric.data.data_points
        if hasattr(point, "value")
    }
    oldest = "flowcore.run.oldest_start.timestamp", "slow"
    print(who, points["flowcore.runs.active", "slow"], points["flowcore.steps.ready", "slow"], oldest in points)
    sys.stdout.flush()

engine = Engine(hooks=[hook])
future = engine.submit(slow)
assert started.wait(30)
show("parent")
pid = os.fork()
if not pid:
    show("child")
    os._exit(0)
os.waitpid(pid, 0)
show("parent")
go_on.set()
future.result()
show("parent")
"""
    )
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, timeout=90, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "parent 1 1 True",
        "child 0 0 False",
        "parent 1 1 True",
        "parent 0 0 False",
    ]


def test_a_child_that_comes_back_into_its_parents_run_takes_nothing_from_its_gauges(tmp_path: Path) -> None:
    code = (
        SERVER.split("def worker", maxsplit=1)[0]
        + """
from flowcore import LeaseLost

forking, children = Workflow("forking", max_parallel=1), []

def fork(ctx):
    children.append(os.fork())
    if children[0]:
        os.waitpid(children[0], 0)

def look(ctx):
    if children[0]:
        show("with a child that is over")

forking.add_step("fork", fork)
forking.add_step("look", look)
forking.add_step("last", lambda ctx: None)
try:
    Engine(hooks=[hook]).run(forking)
except LeaseLost:
    assert not children[0]
else:
    show("after all")
"""
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([*PYTHON, code], env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    of_forking = frozenset({("workflow", "forking")})
    for name, expected in (("flowcore_runs_active", [1, 0]), ("flowcore_steps_ready", [1, 0])):
        assert [scrape[name, of_forking] for scrape in scrapes(done.stdout)] == expected
