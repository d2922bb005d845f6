"""Processes that run workflows, minute by minute, as the series that Prometheus would have scraped from them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from flowcore_otel import names
from flowcore_otel.names import Metric

__all__ = ["MINUTE", "Flow", "Process", "Samples", "Step", "openmetrics"]

MINUTE: Final = 60
_KEPT_ALIVE: Final = 4 * MINUTE
"""a series that does not change is written this often: Prometheus forgets it after five minutes"""
_HIDDEN_COUNTS: Final = ("_bucket", "_count", "_sum")

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], list[tuple[int, float]]]


@dataclass(frozen=True)
class Step:
    """A step: its median seconds, and the chance that one attempt of it fails."""

    name: str
    seconds: float
    fails: float = 0.0
    attempts: int = 1
    error: str = "OSError"


@dataclass(frozen=True)
class Flow:
    """A workflow: runs per minute and process, and the chances that one is undone or fails."""

    name: str
    rate: float
    steps: tuple[Step, ...]
    undone: float = 0.0
    failed: float = 0.0
    repeated: float = 0.0
    """requests that come with a known key"""


@dataclass
class Weather:
    """What a minute is like for one workflow, as factors."""

    busy: float = 1.0
    slow: float = 1.0
    undone: float = 0.0
    """the chance to be undone, beyond the usual"""
    failed: float = 0.0
    attempts_fail: float = 0.0
    """the chance of an attempt of a step with retries, beyond the usual"""
    steps: tuple[str, ...] = ()
    """the steps that are slow and fail; all where empty"""
    store_fails: float = 0.0
    exactly: int | None = None
    """runs in this minute, whatever the rate"""


Forecast = Callable[[int, Flow], Weather]


@dataclass
class Process:
    """One process of a job: its counters from its start to its end."""

    job: str
    instance: str
    flows: tuple[Flow, ...]
    samples: Samples
    version: str = "1.4.0"
    store: str = "redis"
    forecast: Forecast = lambda at, flow: Weather()
    held: Callable[[int, Flow], dict[str, int]] = lambda at, flow: {}
    """what a survey of the store counts, by status"""
    clock: int = 0
    """the seconds by which its clock is ahead"""
    rich: bool = False
    """whether steps have histograms of durations too: for pictures, not for alerts"""
    seed: int = 4
    values: dict[tuple[str, Labels], float] = field(default_factory=dict[tuple[str, Labels], float])
    written: dict[tuple[str, Labels], tuple[int, float]] = field(
        default_factory=dict[tuple[str, Labels], tuple[int, float]]
    )

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} {self.job} {self.instance} {self.version}")
        self.set(names.BUILD_INFO, 1, version="0.1.0")
        self.set(names.APP_INFO, 1, version=self.version)
        for hook in ("TracingHook", "PrometheusHook") if self.flows else ():
            self.add(names.HOOK_ERRORS, 0, hook=hook)
            self.add(names.HOOK_DURATION, 0, hook=hook)
            self.add(names.CAPPED, 0, hook=hook)
        self.set(names.WORKERS_LIMIT, 32)
        for outcome in ("success", "failure") if self.flows else ():
            self.observe(names.STORE_DURATION, 0, 0.001, store=self.store, operation="checkpoint", outcome=outcome)
        for flow in self.flows:
            self._register(flow)
        for status in ("held", "expired") if self.flows else ():
            self.set(names.STORE_RUNS, 0, workflow=names.UNKNOWN, status=status)

    def _register(self, flow: Flow) -> None:
        self.set(names.WORKFLOW_INFO, 1, workflow=flow.name, steps=str(len(flow.steps)))
        self.add(names.LEASE_LOST, 0, workflow=flow.name)
        for outcome in names.RUN_OUTCOMES:
            self.add(names.RUNS, 0, workflow=flow.name, outcome=outcome)
        for outcome in ("success", "compensated", "failure"):
            self.observe(names.RUN_DURATION, 0, 1, workflow=flow.name, outcome=outcome)
        for error in names.REFUSALS if self.rich else ():
            self.add(names.RUNS_REFUSED, 0, workflow=flow.name, error_type=error)
        for outcome in names.IDEMPOTENCY_OUTCOMES if self.rich else ():
            self.add(names.IDEMPOTENCY_HITS, 0, workflow=flow.name, outcome=outcome)
        for decision in names.RECOVERY_DECISIONS:
            self.add(names.RUN_RECOVERIES, 0, workflow=flow.name, decision=decision)
        for step in flow.steps:
            of = {"workflow": flow.name, "step": step.name}
            for metric in (names.STEP_RETRIES, names.BACKOFF_SECONDS, names.LATE_COMPLETIONS):
                self.add(metric, 0, **of)
            for outcome in ("success", "failure"):
                self.add(names.STEP_ATTEMPTS, 0, **of, outcome=outcome)
                if self.rich:
                    self.observe(names.STEP_DURATION, 0, 1, **of, outcome=outcome)
                    self.observe(names.ATTEMPT_DURATION, 0, 1, **of, outcome=outcome)
            for outcome in names.COMPENSATION_OUTCOMES if self.rich else ():
                self.add(names.COMPENSATIONS, 0, **of, outcome=outcome)

    # -- series --------------------------------------------------------------------------------------------------------

    def key(self, name: str, labels: dict[str, str]) -> tuple[str, Labels]:
        return name, (*labels.items(), ("instance", self.instance), ("job", self.job))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self.values[self.key(metric.prometheus, labels)] = value

    def add(self, metric: Metric, amount: float, **labels: str) -> None:
        key = self.key(metric.prometheus, labels)
        self.values[key] = self.values.get(key, 0.0) + amount

    def observe(self, metric: Metric, count: float, median: float, **labels: str) -> None:
        """`count` durations, log-normal around `median`: buckets get the share that is expected."""
        name, spread = metric.prometheus, 0.5
        for bound in metric.buckets if self.rich else metric.buckets[4::2]:
            share = 0.5 * math.erfc(-(math.log(bound) - math.log(median)) / (spread * math.sqrt(2)))
            self._count(f"{name}_bucket", count * share, {**labels, "le": f"{float(bound)}"})
        self._count(f"{name}_bucket", count, {**labels, "le": "+Inf"})
        self._count(f"{name}_count", count, labels)
        self._count(f"{name}_sum", count * median * math.exp(spread**2 / 2), labels)

    def _count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        key = self.key(name, labels)
        self.values[key] = self.values.get(key, 0.0) + amount

    # -- time ----------------------------------------------------------------------------------------------------------

    def minute(self, at: int, *, up: bool = True) -> None:
        """What happens in the minute that ends `at`, and the scrape then."""
        busy = 0.0
        for flow in self.flows:
            busy += self._run(at, flow)
        if self.flows and (self.rich or self.clock):
            self.set(names.LAST_RECOVERY, at + self.clock - 7)
        if self.flows and self.rich:
            self.set(names.WORKERS, min(32.0, round(busy)), state="busy")
            self.set(names.WORKERS, 0, state="abandoned")
            self.add(names.HOOK_DURATION, 0.004, hook="TracingHook")
            self.add(names.HOOK_DURATION, 0.002, hook="PrometheusHook")
        self.scrape(at, up=up)

    def _run(self, at: int, flow: Flow) -> float:
        weather = self.forecast(at, flow)
        count = self._poisson(flow.rate * weather.busy) if weather.exactly is None else weather.exactly
        undone = self._some(count, flow.undone + weather.undone)
        failed = self._some(count - undone, flow.failed + weather.failed)
        slow = {
            step.name: weather.slow if step.name in weather.steps or not weather.steps else 1.0 for step in flow.steps
        }
        whole = sum(step.seconds * slow[step.name] for step in flow.steps)
        for outcome, ended in (("success", count - undone - failed), ("compensated", undone), ("failure", failed)):
            self.add(names.RUNS, ended, workflow=flow.name, outcome=outcome)
            if ended:
                self.observe(names.RUN_DURATION, ended, whole, workflow=flow.name, outcome=outcome)
                self.set(names.LAST_END, at + self.clock - 3, workflow=flow.name, outcome=outcome)
                if outcome == "success":
                    self.set(names.LAST_SUCCESS, at + self.clock - 3, workflow=flow.name)
        for step in flow.steps:
            self._step(flow, step, count, slow[step.name], weather)
        if self.rich and flow.repeated:
            self.add(
                names.IDEMPOTENCY_HITS, self._poisson(count * flow.repeated), workflow=flow.name, outcome="replayed"
            )
            self.add(
                names.IDEMPOTENCY_HITS, self._poisson(count * flow.repeated / 9), workflow=flow.name, outcome="adopted"
            )
        calls = count * (len(flow.steps) + 2)
        broken = self._some(calls, weather.store_fails)
        about = {"store": self.store, "operation": "checkpoint"}
        self.observe(names.STORE_DURATION, calls - broken, 0.0012, **about, outcome="success")
        self.observe(names.STORE_DURATION, broken, 0.9, **about, outcome="failure")
        in_flight = count * whole / MINUTE
        self.set(names.RUNS_ACTIVE, round(in_flight), workflow=flow.name)
        if self.rich:
            self.set(names.RUNS_QUEUED, 0, workflow=flow.name)
            self.observe(names.QUEUE_DURATION, count, 0.0009, workflow=flow.name)
        self.set(names.STEPS_READY, round(in_flight / 12), workflow=flow.name)
        started = at + self.clock - min(2 * whole, 50)
        self.set(names.OLDEST_START, started if count else math.inf, workflow=flow.name)
        for status in ("held", "parked", "incomplete", "expired", "overdue"):
            self.set(names.STORE_RUNS, self.held(at, flow).get(status, 0), workflow=flow.name, status=status)
        return in_flight

    def _step(self, flow: Flow, step: Step, count: int, slow: float, weather: Weather) -> None:
        of = {"workflow": flow.name, "step": step.name}
        self.observe(
            names.WAIT_DURATION, count, 0.0006 * slow, **of
        )  # steps that are ready and never start are an alert
        affected = step.name in weather.steps or (not weather.steps and step.attempts > 1)
        fails = step.fails + (weather.attempts_fail if affected else 0.0)
        tries, ended_badly = count, 0
        for attempt in range(1, step.attempts + 1):
            bad = self._some(tries, fails)
            self.add(names.STEP_ATTEMPTS, tries - bad, **of, outcome="success")
            self.add(names.STEP_ATTEMPTS, bad, **of, outcome="failure")
            if self.rich and bad:
                self.add(names.STEP_ERRORS, bad, **of, error_type=step.error)
            if self.rich and step.attempts > 1:
                self.observe(names.ATTEMPT_DURATION, tries - bad, step.seconds * slow, **of, outcome="success")
                self.observe(names.ATTEMPT_DURATION, bad, step.seconds * slow, **of, outcome="failure")
            if attempt < step.attempts:
                self.add(names.STEP_RETRIES, bad, **of)
                self.add(names.BACKOFF_SECONDS, bad * 0.2 * 2**attempt, **of)
            else:
                ended_badly = bad
            tries = bad
        if not self.rich:
            return
        undone = self._some(count, flow.undone + weather.undone) if step is not flow.steps[-1] else 0
        self.add(names.COMPENSATIONS, undone, **of, outcome="success")
        self.observe(names.COMPENSATION_DURATION, undone, 0.04, **of, outcome="success")
        self.observe(names.STEP_DURATION, count - ended_badly, step.seconds * slow, **of, outcome="success")
        self.observe(names.STEP_DURATION, ended_badly, step.seconds * slow, **of, outcome="failure")

    def scrape(self, at: int, *, up: bool = True) -> None:
        """A sample of each series that has changed, or would be forgotten."""
        samples, instance = self.samples, (("instance", self.instance), ("job", self.job))
        self.set(names.CLOCK, at + self.clock)
        samples.setdefault(("up", instance), []).append((at, float(up)))
        if not up:
            return
        if self.rich:
            samples.setdefault(("scrape_samples_scraped", instance), []).append((at, float(len(self.values))))
            samples.setdefault(("scrape_duration_seconds", instance), []).append((at, 0.021))
        for key, value in self.values.items():
            last = self.written.get(key)
            if last is None or last[1] != value or at - last[0] >= _KEPT_ALIVE:
                samples.setdefault(key, []).append((at, value))
                self.written[key] = at, value

    def _poisson(self, mean: float) -> int:
        if mean > 30:
            return max(0, round(self.random.gauss(mean, math.sqrt(mean))))
        count, product, limit = 0, self.random.random(), math.exp(-mean)
        while product > limit:
            count += 1
            product *= self.random.random()
        return count

    def _some(self, count: int, chance: float) -> int:
        """How many of `count` a chance hits."""
        if chance <= 0 or count <= 0:
            return 0
        if chance >= 1:
            return count
        if count > 200:
            return min(count, self._poisson(count * chance))
        return sum(self.random.random() < chance for _ in range(count))


def openmetrics(samples: Samples) -> Iterator[str]:
    """The lines of a file for `promtool tsdb create-blocks-from openmetrics`."""

    def family(name: str) -> str:
        end = next((end for end in _HIDDEN_COUNTS if name.endswith(end) and "duration" in name), "")
        return name.removesuffix(end)

    for name, labels in sorted(samples, key=lambda key: (family(key[0]), key)):
        head = f"{name}{{{','.join(f'{label}={chr(34)}{value}{chr(34)}' for label, value in labels)}}}"
        for at, value in samples[name, labels]:
            yield f"{head} {'+Inf' if value == math.inf else repr(float(value))} {at}\n"
    yield "# EOF\n"
