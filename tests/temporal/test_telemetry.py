"""Spans and counters of a run on Temporal are those of the same run on AsyncEngine."""

import asyncio
import importlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Backoff, Retry, Workflow
from flowcore.events import RunEnded
from flowcore.stores import SQLiteStore
from flowcore_otel import LogContext, PrometheusHook, TracingHook
from tests.otel.conftest import Spans

from .conftest import PATIENCE, Temporal, eventually, is_over, until


def checkout(*, declined: bool) -> Workflow:
    wf = Workflow("checkout")
    reserve = wf.add_step("reserve", lambda ctx: "r-1", retry=2)
    reserve.compensate(lambda ctx: None)

    @wf.step(depends_on=reserve, retry=Retry(3, Backoff.fixed(0)), timeout=30)
    async def charge(ctx: Any) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("reset")
        return "c-1"

    charge.compensate(lambda ctx: None)
    wf.add_step("gift", lambda ctx: 1, depends_on=charge, when=lambda ctx: False)

    @wf.step(depends_on=["gift", reserve])
    def ship(ctx: Any) -> None:
        if declined:
            raise ValueError("no stock")

    return wf


def counts(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """All counters of runs, steps, attempts and undos that are not zero."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if family.type in {"counter", "histogram"}
        and sample.name.endswith(("_total", "_count"))
        and sample.value
        and not any(part in sample.name for part in ("store", "hook", "backoff_seconds"))
    }


@pytest.mark.parametrize("declined", [False, True], ids=["success", "undone"])
def test_spans_and_counters_are_those_of_asyncengine(temporal: Temporal, tmp_path: Path, declined: bool) -> None:
    found: list[tuple[str, dict[tuple[str, ...], float]]] = []

    async def here(wf: Workflow, hooks: Any) -> None:
        async with AsyncEngine(store=SQLiteStore(tmp_path / "runs.db"), hooks=hooks) as engine:
            await engine.run(wf, idempotency_key="k", check=False)
            await engine.run(wf, idempotency_key="k", check=False)

    async def there(wf: Workflow, hooks: Any) -> None:
        async with temporal.open(wf, hooks=hooks, worker_hooks=hooks) as engine:
            await engine.run(wf, idempotency_key="k", check=False)
            await engine.run(wf, idempotency_key="k", check=False)

    for drive in (here, there):
        spans, registry = Spans(), CollectorRegistry()
        hooks = [TracingHook(spans.provider), PrometheusHook(registry=registry), LogContext()]
        wf = checkout(declined=declined)
        if drive is here:
            asyncio.run(here(wf, hooks))
        else:
            temporal.run(lambda wf=wf, hooks=hooks: there(wf, hooks))  # type: ignore[misc]
        found.append((spans.tree(), counts(registry)))
    (tree, numbers), (on_temporal, numbers_there) = found
    assert on_temporal == tree
    assert "attempt charge" in tree
    assert ("compensate charge" in tree) is declined
    assert numbers_there == numbers


def flow_counts(registry: CollectorRegistry) -> dict[str, float]:
    """Runs that ended, by outcome, as one registry has counted them."""
    return {
        sample.labels["outcome"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "flowcore_runs_total" and sample.value
    }


class Fleet:
    """The hooks of a caller and of a worker, each with the registry of its process."""

    def __init__(self, *, caller: bool = True, worker: bool = True) -> None:
        self.caller, self.worker = CollectorRegistry(), CollectorRegistry()
        self.of_caller: list[Any] = [PrometheusHook(registry=self.caller)] if caller else [_ignore]
        self.of_worker: list[Any] = [PrometheusHook(registry=self.worker)] if worker else [_ignore]

    def runs(self) -> dict[str, float]:
        return dict(Counter(flow_counts(self.caller)) + Counter(flow_counts(self.worker)))


def _ignore(event: Any) -> None:
    """A hook that wants every event and counts nothing."""


@pytest.mark.parametrize(("caller", "worker"), [(True, True), (True, False), (False, True)])
def test_the_end_of_a_run_is_counted_once_whichever_process_has_a_hook_for_it(
    temporal: Temporal, caller: bool, worker: bool
) -> None:
    fleet = Fleet(caller=caller, worker=worker)
    works, undone = checkout(declined=False), checkout(declined=True)
    undone.name = "undone"
    left = Workflow("left", undo="never")
    left.add_step("fails", lambda ctx: 1 / 0)

    async def main() -> None:
        async with temporal.open(works, undone, left, hooks=fleet.of_caller, worker_hooks=fleet.of_worker) as engine:
            for wf in (works, undone, left, left):  # the last two are the same run, which is resumed
                await engine.run(wf, idempotency_key=wf.name, check=False)
            await engine.run(works, idempotency_key=works.name)  # a replay is no run

    temporal.run(main)
    assert fleet.runs() == {"success": 1, "compensated": 1, "incomplete": 2}
    assert flow_counts(fleet.worker if worker else fleet.caller) == fleet.runs()
    never = {"workflow": "left", "outcome": "success"}
    assert (fleet.worker if worker else fleet.caller).get_sample_value("flowcore_runs_total", never) == 0
    active = "flowcore_runs_active"
    assert {fleet.caller.get_sample_value(active, {"workflow": name}) for name in ("checkout", "left")} <= {0.0, None}


def test_the_end_of_a_run_is_counted_though_its_caller_is_gone(temporal: Temporal) -> None:
    fleet, goes_on, ended = Fleet(), threading.Event(), list[Any]()
    wf = Workflow("orphan")
    wf.add_step("step", lambda ctx: goes_on.wait(PATIENCE))

    async def main() -> None:
        hooks = [*fleet.of_worker, lambda event: ended.append(event) if isinstance(event, RunEnded) else None]
        async with temporal.open(wf, hooks=fleet.of_caller, worker_hooks=hooks) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.recorded()
            await engine.close()
            goes_on.set()
            other = await temporal.engine()
            await until(lambda: is_over(other, "k"))
            assert (await other.run(wf, idempotency_key="k")).replayed

    temporal.run(main)
    assert fleet.runs() == {"success": 1}
    (end,) = ended
    assert (end.workflow, end.key, end.outcome) == ("orphan", "k", "success")
    assert 0 < end.duration < PATIENCE


def test_a_run_past_its_pivot_that_is_resumed_without_a_caller_is_counted(temporal: Temporal) -> None:
    fleet, tries = Fleet(), list[int]()
    wf = Workflow("pivot")
    wf.add_step("point", lambda ctx: 1, pivot=True)

    @wf.step(depends_on="point")
    def after(ctx: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")

    async def main() -> None:
        async with temporal.open(wf, hooks=fleet.of_caller, worker_hooks=fleet.of_worker) as engine:
            assert (await engine.run(wf, idempotency_key="k", check=False)).status == "incomplete"

            async def is_done() -> bool:
                head = await engine.store.head("k")
                return head is not None and head.status == "success"

            await until(is_done)

    temporal.run(main)
    assert fleet.runs() == {"incomplete": 1, "success": 1}


def test_a_step_that_is_taken_over_is_in_the_trace_of_its_run_and_is_counted_once(
    temporal: Temporal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first worker is killed, and its spans and counters with it; what the others have is that of a run without a kill."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    killed: Any = importlib.import_module("killed")
    found: list[tuple[str, dict[tuple[str, ...], float]]] = []

    for kills in (False, True):
        spans, registry, name = Spans(), CollectorRegistry(), f"plain-{kills}"
        hooks = [TracingHook(spans.provider), PrometheusHook(registry=registry)]
        wf, values = killed.workflow("plain"), {"folder": str(tmp_path), "name": name}

        async def main(hooks: Any = hooks, wf: Any = wf, values: Any = values, kills: bool = kills) -> None:
            engine = await temporal.engine(hooks=hooks)
            if kills:
                (tmp_path / "go").unlink()
                await asyncio.to_thread(temporal.worker_process, Path(killed.__file__))
            else:
                (tmp_path / "go").touch()
            future = engine.submit(wf, values, idempotency_key=values["name"])
            if kills:
                log = tmp_path / f"{values['name']}.log"
                await asyncio.to_thread(eventually, lambda: log.exists() and "stuck" in log.read_text())
                temporal.kill_workers()
                (tmp_path / "go").touch()
            async with temporal.open(wf, worker_hooks=hooks):
                assert (await future)["stuck"] == "done"

        temporal.run(main)
        found.append((spans.tree(), counts(registry)))
    (tree, numbers), (after_a_kill, numbers_after) = found
    whole = tree.splitlines()
    assert [line.partition(" → depends_on")[0] for line in whole[2:]] == ["├── step first", "└── step stuck"]
    assert after_a_kill.splitlines() == [
        *whole[:2],
        "└── step stuck",
    ]  # its link leads to a span that died with its worker
    assert numbers_after == {name: number for name, number in numbers.items() if "first" not in name}
