"""A process dies in the middle of a run (kill -9), and another one goes on: the traces of the two lead to each other."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import CollectorRegistry

from flowcore import Engine, IdempotencyHeld, RunFailed, Workflow
from flowcore_otel import PrometheusHook, TracingHook, names, original_trace_id, trace_id
from flowcore_otel.testing import span_tree

from ..stores.redis_servers import start_redis, until
from .conftest import Spans
from .dying import KEY, LEASE, open_store, trip
from .test_trees import golden

__all__ = ["start_redis"]
ROOT = Path(__file__).parents[2]


class Dead(NamedTuple):
    """What a killed process has left: its store, and the one span of it that had ended."""

    store: str
    trace_id: str
    run_span: str
    book_span: str


@pytest.fixture(params=["sqlite", "redis"])
def dead(request: pytest.FixtureRequest, tmp_path: Path) -> Dead:
    where = (
        f"sqlite:{tmp_path / 'runs.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("start_redis")(appendonly="no").url
    )
    command = [sys.executable, "-m", "tests.otel.dying", where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    ((name, trace, span, parent),) = [line.split("\t") for line in done.stdout.splitlines()]
    assert name == "step book"
    return Dead(where, trace, parent, span)


class Survivor:
    """An engine of this process on the store of the dead one."""

    def __init__(self, store: Any, spans: Spans, workflow: Workflow) -> None:
        self.registry = CollectorRegistry()
        self.store = store
        hooks = [TracingHook(spans.provider), PrometheusHook(self.registry)]
        self.engine = Engine(store=store, hooks=hooks, lease=LEASE, workflows=[workflow])
        self.workflow = workflow

    def value(self, metric: names.Metric, suffix: str = "", **labels: str) -> float | None:
        return self.registry.get_sample_value(metric.prometheus + suffix, labels)


Survive = Callable[[Literal["retry", "undo", "hold"]], Survivor]
"""makes a survivor, for a workflow with that `on_crash`"""


@pytest.fixture
def survive(dead: Dead, spans: Spans) -> Iterator[Survive]:
    made: list[Survivor] = []
    stack = ExitStack()

    def make(on_crash: Literal["retry", "undo", "hold"]) -> Survivor:
        made.append(Survivor(stack.enter_context(open_store(dead.store)), spans, trip(dies=False, on_crash=on_crash)))
        return made[-1]

    with stack:
        yield make
        for survivor in made:
            survivor.engine.close()


def links(span: ReadableSpan) -> list[tuple[str, str]]:
    """Where a span's links lead to: what they are, and the other span."""
    return [(str((link.attributes or {})[names.LINK_TYPE]), f"{link.context.span_id:016x}") for link in span.links]


def test_the_next_caller_continues_forward(dead: Dead, spans: Spans, survive: Survive) -> None:
    survivor = survive("retry")
    with spans.span("POST /trips"):
        run = survivor.engine.run(survivor.workflow, idempotency_key=KEY, wait=20)
    assert spans.tree() == golden("""
        POST /trips
        └── run trip → interrupted_run (elsewhere)
            ├── recover trip → interrupted_run (elsewhere)
            ├── step pay → depends_on (elsewhere)
            └── step ship → depends_on (elsewhere) → depends_on step pay
    """)
    assert links(spans["run trip"]) == links(spans["recover trip"]) == [("interrupted_run", dead.run_span)]
    assert links(spans["step pay"]) == [("depends_on", dead.book_span)]
    assert links(spans["step ship"])[0] == ("depends_on", dead.book_span)
    linked = {link.context.trace_id for span in spans.all() for link in span.links} - {
        spans["run trip"].context.trace_id
    }
    assert {f"{trace:032x}" for trace in linked} == {dead.trace_id}
    whole = spans["run trip"].attributes or {}
    assert whole["flowcore.interrupted_run.sampled"] is True
    assert whole["flowcore.run.id"] == run.id
    assert whole["flowcore.interrupted_run.host"] == socket.gethostname()
    assert whole["flowcore.interrupted_run.pid"] != os.getpid()
    assert 0 < time.time() - cast("float", whole["flowcore.interrupted_run.since"]) < 600
    assert whole["flowcore.interrupted_run.step"] == "pay"
    assert dict(spans["recover trip"].attributes or {}) == {
        "flowcore.workflow.name": "trip",
        "flowcore.run.id": run.id,
        "flowcore.recovery.skipped": ("book",),
        "flowcore.recovery.retried": ("pay",),
    }
    assert survivor.value(names.RUN_RECOVERIES, workflow="trip", decision="forward") == 1
    assert survivor.value(names.RUN_DURATION, "_count", workflow="trip", outcome="success") == 1
    claims = {"store": survivor.store.name, "operation": "claim", "outcome": "success"}
    assert survivor.value(names.STORE_DURATION, "_count", **claims) >= 1


def test_a_recovery_round_undoes_in_a_trace_of_its_own(dead: Dead, spans: Spans, survive: Survive) -> None:
    survivor = survive("undo")
    with spans.span("the caller of the round"):
        (run,) = until(survivor.engine.recover, "a takeover")
    assert isinstance(run.error, RunFailed)
    (whole,) = spans.named("run trip")
    of_run = [span for span in spans.all() if span.context.trace_id == whole.context.trace_id]
    assert span_tree(of_run) == golden("""
        run trip ERROR flowcore.errors.RunFailed ! flowcore.errors.RunFailed → interrupted_run (elsewhere)
        ├── recover trip → interrupted_run (elsewhere)
        ├── compensate pay
        │   └── attempt pay
        └── compensate book → compensates (elsewhere)
            └── attempt book
    """)
    assert whole.parent is None
    assert links(spans["compensate book"]) == [("compensates", dead.book_span)]
    assert dict(spans["recover trip"].attributes or {}) == {
        "flowcore.workflow.name": "trip",
        "flowcore.run.id": run.id,
        "flowcore.recovery.skipped": ("book",),
        "flowcore.recovery.undone": ("pay", "book"),
    }
    assert survivor.value(names.RUN_RECOVERIES, workflow="trip", decision="undo") == 1
    assert survivor.value(names.COMPENSATIONS, workflow="trip", step="pay", outcome="success") == 1
    assert survivor.value(names.STORE_RUNS, workflow="trip", status="expired") is not None


def test_what_an_operator_must_decide_on_is_held(dead: Dead, spans: Spans, survive: Survive) -> None:
    survivor = survive("hold")
    with pytest.raises(IdempotencyHeld):
        survivor.engine.run(survivor.workflow, idempotency_key=KEY, wait=20)
    assert spans.tree() == golden("""
        run trip ERROR flowcore.errors.IdempotencyHeld ! flowcore.errors.IdempotencyHeld → interrupted_run (elsewhere)
        └── recover trip → interrupted_run (elsewhere)
    """)
    recovery = dict(spans["recover trip"].attributes or {})
    assert recovery["flowcore.recovery.held"] == ("pay",)
    assert survivor.value(names.RUN_RECOVERIES, workflow="trip", decision="hold") == 1


def test_later_a_replay_leads_to_a_trace_of_the_run(dead: Dead, spans: Spans, survive: Survive) -> None:
    survivor = survive("retry")
    survivor.engine.run(survivor.workflow, idempotency_key=KEY, wait=20)
    spans.clear()
    again = survivor.engine.run(survivor.workflow, idempotency_key=KEY)
    assert again.replayed
    assert (
        original_trace_id(again) == trace_id(again) == f"{spans['idempotency hit trip'].links[0].context.trace_id:032x}"
    )
