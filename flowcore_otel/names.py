"""The catalogue: every span, attribute, log event, metric, unit, label and bucket that flowcore_otel emits, once.

Code takes its names from here; documents, dashboards and alert rules are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

SCOPE: Final = "flowcore"
"""who emits all this: the name of the instrumentation scope"""


def _version() -> str:
    try:
        return version("flowcore")
    except PackageNotFoundError:  # copied into a program instead of installed
        return "unknown"


SCOPE_VERSION: Final = _version()

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""the semantic conventions that `code.function.name`, `error.type` and `exception.*` follow"""

SPANS: Final[dict[str, str]] = {}
"""what stands before the target in a span's name -> what the span covers"""

ATTRIBUTES: Final[dict[str, str]] = {}
"""span and log attributes -> what they mean"""

LOG_EVENTS: Final[dict[str, str]] = {}
"""names of log events -> what they tell"""


def _span(action: str, meaning: str) -> str:
    SPANS[action] = meaning
    return action


def _attribute(name: str, meaning: str) -> str:
    ATTRIBUTES[name] = meaning
    return name


def _log_event(name: str, meaning: str) -> str:
    LOG_EVENTS[name] = meaning
    return name


# Spans: `{action} {workflow}` or `{action} {step}`.
RUN: Final = _span("run", "a run, from its request to its outcome")
STEP: Final = _span("step", "a step, from its first attempt's start to its last attempt's end")
ATTEMPT: Final = _span("attempt", "one attempt of a step or an undo that may have several")
BACKOFF: Final = _span("backoff", "the wait from a failed attempt's end to the next one's start")
COMPENSATE: Final = _span("compensate", "the undo of a step")
RECOVER: Final = _span("recover", "a takeover: what became of the steps that were found")
SUBMIT: Final = _span("submit", "engine.submit, on the caller's side")
IDEMPOTENCY_HIT: Final = _span("idempotency hit", "a request that was answered, or refused, because of an earlier run")

# Attributes.
WORKFLOW_NAME: Final = _attribute("flowcore.workflow.name", "the workflow")
RUN_ID: Final = _attribute("flowcore.run.id", "the run; also set on the caller's span")
RUN_OUTCOME: Final = _attribute(
    "flowcore.run.outcome", "success, failure, compensated, compensation_failed, incomplete, parked or lost"
)
RUN_PARALLELISM: Final = _attribute("flowcore.run.parallelism", "seconds spent in steps, divided by the run's seconds")
RUN_CRITICAL_PATH: Final = _attribute(
    "flowcore.run.critical_path", "the chain of steps that took longest, in order; its 64 longest steps if it has more"
)
RUN_CRITICAL_PATH_LENGTH: Final = _attribute("flowcore.run.critical_path.length", "number of steps on that chain")
RUN_CRITICAL_PATH_SECONDS: Final = _attribute("flowcore.run.critical_path.seconds", "seconds spent on that chain")
RUN_SKIPPED: Final = _attribute("flowcore.run.skipped", "steps whose when= said no, at most 64")
RUN_UNTRACED_STEPS: Final = _attribute(
    "flowcore.run.untraced_steps", "steps that ran without a span, being past max_step_spans"
)
STEP_NAME: Final = _attribute("flowcore.step.name", "the step")
STEP_ATTEMPT: Final = _attribute("flowcore.step.attempt", "which attempt it is, from 1; on a step: the last one made")
STEP_MAX_ATTEMPTS: Final = _attribute("flowcore.step.max_attempts", "attempts that the definition allows")
STEP_WAIT: Final = _attribute("flowcore.step.wait", "seconds from ready to start")
STEP_BACKOFF: Final = _attribute("flowcore.step.backoff", "seconds spent waiting between attempts")
STEP_DEPENDS_ON: Final = _attribute("flowcore.step.depends_on", "the dependencies, at most 64")
STEP_DEPENDS_ON_COUNT: Final = _attribute("flowcore.step.depends_on.count", "how many dependencies there are")
STEP_OUTCOME: Final = _attribute("flowcore.step.outcome", "success, failure, timeout or cancelled")
BACKOFF_DELAY: Final = _attribute("flowcore.backoff.delay", "the planned seconds")
BACKOFF_REASON: Final = _attribute("flowcore.backoff.reason", "who planned them: policy, retry_after or predicate")
COMPENSATION_ORDER: Final = _attribute("flowcore.compensation.order", "1 for the first undo of the run")
COMPENSATION_TRIGGER: Final = _attribute(
    "flowcore.compensation.trigger", "the step that failed the run, or cancelled, deadline, operator"
)
COMPENSATION_OUTCOME: Final = _attribute("flowcore.compensation.outcome", "success, failure or timeout")
RECOVERY_SKIPPED: Final = _attribute("flowcore.recovery.skipped", "steps found done, at most 64")
RECOVERY_RETRIED: Final = _attribute("flowcore.recovery.retried", "steps found in flight that run again, at most 64")
RECOVERY_VERIFIED: Final = _attribute("flowcore.recovery.verified", "steps that verify= answered for, at most 64")
RECOVERY_UNDONE: Final = _attribute("flowcore.recovery.undone", "steps that are undone, at most 64")
RECOVERY_HELD: Final = _attribute("flowcore.recovery.held", "steps that hold the run, at most 64")
IDEMPOTENCY_OUTCOME: Final = _attribute(
    "flowcore.idempotency.outcome", "replayed, adopted, in_progress, mismatch or held"
)
IDEMPOTENCY_KEY_HASH: Final = _attribute("flowcore.idempotency.key_hash", "the idempotency key, hashed")
IDEMPOTENCY_AGE: Final = _attribute("flowcore.idempotency.age", "seconds since the original run started")
ORIGINAL_RUN_ID: Final = _attribute("flowcore.original_run.id", "the run that has the key")
ORIGINAL_RUN_SAMPLED: Final = _attribute("flowcore.original_run.sampled", "whether it has a trace to look at")
INTERRUPTED_RUN_ID: Final = _attribute("flowcore.interrupted_run.id", "the run that this one goes on with")
INTERRUPTED_RUN_SAMPLED: Final = _attribute("flowcore.interrupted_run.sampled", "whether it has a trace to look at")
LINK_TYPE: Final = _attribute(
    "flowcore.link.type", "on links: depends_on, compensates, request, original_run or interrupted_run"
)
CODE_FUNCTION: Final = _attribute("code.function.name", "the function that the step, or its undo, calls")
ERROR_TYPE: Final = _attribute("error.type", "timeout, cancelled, or the error's class; absent on success")
EXCEPTION_TYPE: Final = _attribute("exception.type", "of a recorded exception: its class")
EXCEPTION_MESSAGE: Final = _attribute("exception.message", "of a recorded exception: what it says")
EXCEPTION_STACKTRACE: Final = _attribute("exception.stacktrace", "of a recorded exception: its traceback")
STEP_LATE: Final = _attribute("flowcore.step.late", "seconds by which an attempt landed after it had been given up")

# Link types.
LINK_DEPENDS_ON: Final = "depends_on"
LINK_COMPENSATES: Final = "compensates"
LINK_REQUEST: Final = "request"
LINK_ORIGINAL_RUN: Final = "original_run"
LINK_INTERRUPTED_RUN: Final = "interrupted_run"

# Log events.
EXCEPTION: Final = _log_event("exception", "an exception, on the innermost span that failed with it; also a span event")
RUN_STARTED: Final = _log_event("flowcore.run.started", "a recorded run has started: evidence, should it never end")
STEP_STARTED: Final = _log_event("flowcore.step.started", "the same of a step, with step_events=True")
STEP_LANDED_LATE: Final = _log_event("flowcore.step.completed_late", "an attempt that was given up came back after all")


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: a metric is a key on the hot path
class Metric:
    """A metric, under both of its names."""

    name: str
    """in OpenTelemetry"""
    kind: str
    """counter, histogram, updown or gauge"""
    unit: str
    """UCUM: `s`, or an annotation such as `{run}`"""
    labels: tuple[str, ...]
    """in Prometheus; LABELS has their OpenTelemetry names"""
    help: str
    multiprocess: Literal["livesum", "livemin", "livemostrecent", "max"] = "livesum"
    """how prometheus_client merges a gauge of several processes"""
    buckets: tuple[float, ...] = ()
    """of a histogram: upper bounds in seconds"""

    @property
    def prometheus(self) -> str:
        """The name in Prometheus, by the rules of the OpenTelemetry specification."""
        unit = "_seconds" if self.unit == "s" else ""
        total = "_total" if self.kind == "counter" else ""
        return self.name.replace(".", "_") + unit + total


LABELS: Final = {
    "workflow": WORKFLOW_NAME,
    "step": STEP_NAME,
    "outcome": "flowcore.outcome",
    "error_type": ERROR_TYPE,
    "decision": "flowcore.decision",
    "hook": "flowcore.hook",
    "store": "flowcore.store.name",
    "operation": "flowcore.store.operation",
    "status": "flowcore.run.status",
    "state": "flowcore.worker.state",
    "steps": "flowcore.workflow.steps",
    "version": "flowcore.version",
}
"""label in Prometheus -> attribute in OpenTelemetry"""

OTHER: Final = "_other"
"""the label value of all that is past a limit"""

OTHER_ERROR: Final = "_OTHER"
"""the semantic conventions' word for an error of no known type"""

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""of whatever runs and steps do: upper bounds in seconds"""

STORE_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10),
)
"""of what stores do: the same"""

RUN_OUTCOMES: Final = ("success", "failure", "compensated", "compensation_failed", "incomplete", "parked", "lost")
COMPENSATION_OUTCOMES: Final = ("success", "failure", "timeout")
IDEMPOTENCY_OUTCOMES: Final = ("replayed", "adopted", "in_progress", "mismatch", "held")
RECOVERY_DECISIONS: Final = ("forward", "undo", "hold")
WORKER_STATES: Final = ("busy", "abandoned")

_OF_RUN = ("workflow", "outcome")
_OF_STEP = ("workflow", "step")
_ENDED = ("workflow", "step", "outcome")

RUN_DURATION: Final = Metric(
    "flowcore.run.duration", "histogram", "s", _OF_RUN, "Seconds that runs took.", buckets=BUCKETS
)
RUNS_ACTIVE: Final = Metric("flowcore.runs.active", "updown", "{run}", ("workflow",), "Runs in flight.")
STEP_DURATION: Final = Metric(
    "flowcore.step.duration",
    "histogram",
    "s",
    _ENDED,
    "Seconds that steps took, attempts and backoffs included.",
    buckets=BUCKETS,
)
ATTEMPT_DURATION: Final = Metric(
    "flowcore.step.attempt.duration",
    "histogram",
    "s",
    _ENDED,
    "Seconds that single attempts of steps took.",
    buckets=BUCKETS,
)
WAIT_DURATION: Final = Metric(
    "flowcore.step.wait.duration",
    "histogram",
    "s",
    _OF_STEP,
    "Seconds that steps were ready before they started.",
    buckets=BUCKETS,
)
STEPS_READY: Final = Metric(
    "flowcore.steps.ready", "updown", "{step}", ("workflow",), "Steps that are ready and have not started."
)
WORKERS: Final = Metric(
    "flowcore._engines.workers",
    "gauge",
    "{worker}",
    ("state",),
    "Threads of engines: busy with what is waited for, or abandoned in calls that were given up.",
)
STEP_RETRIES: Final = Metric(
    "flowcore.step.retries", "counter", "{retry}", _OF_STEP, "Failed attempts of steps that were followed by another."
)
STEP_ERRORS: Final = Metric(
    "flowcore.step.errors", "counter", "{error}", ("workflow", "step", "error_type"), "Failed attempts of steps."
)
LATE_LANDINGS: Final = Metric(
    "flowcore.step.late_completions", "counter", "{attempt}", _OF_STEP, "Attempts that came back after being given up."
)
COMPENSATIONS: Final = Metric("flowcore.compensations", "counter", "{undo}", _ENDED, "Undos of steps.")
COMPENSATION_DURATION: Final = Metric(
    "flowcore.compensation.duration",
    "histogram",
    "s",
    _ENDED,
    "Seconds that undos took, attempts and backoffs included.",
    buckets=BUCKETS,
)
IDEMPOTENCY_HITS: Final = Metric(
    "flowcore.idempotency.hits", "counter", "{hit}", _OF_RUN, "Requests that met an earlier run with their key."
)
RUN_RECOVERIES: Final = Metric(
    "flowcore.run.recoveries", "counter", "{takeover}", ("workflow", "decision"), "Runs taken over from a dead process."
)
LEASE_LOST: Final = Metric(
    "flowcore.lease.lost", "counter", "{lease}", ("workflow",), "Runs that another owner took over from this process."
)
STORE_DURATION: Final = Metric(
    "flowcore.store.operation.duration",
    "histogram",
    "s",
    ("store", "operation", "outcome"),
    "Seconds that stores took to answer.",
    buckets=STORE_BUCKETS,
)
STORE_RUNS: Final = Metric(
    "flowcore.store.runs",
    "gauge",
    "{run}",
    ("workflow", "status"),
    "Runs that wait for somebody, when last counted: held, parked, incomplete or expired.",
    "livemostrecent",
)
LAST_SUCCESS: Final = Metric(
    "flowcore.run.last_success.timestamp", "gauge", "s", ("workflow",), "When a run last succeeded.", "max"
)
OLDEST_START: Final = Metric(
    "flowcore.run.oldest_start.timestamp",
    "gauge",
    "s",
    ("workflow",),
    "When the oldest run in flight started; +Inf when there is none.",
    "livemin",
)
HOOK_ERRORS: Final = Metric("flowcore.hook.errors", "counter", "{error}", ("hook",), "Errors raised by hooks.")
HOOK_DURATION: Final = Metric(
    "flowcore.hook.duration", "counter", "s", ("hook",), "Seconds spent in hooks; of many runs, an estimate."
)
CAPPED: Final = Metric(
    "flowcore.telemetry.capped", "counter", "{measurement}", ("hook",), "Measurements that went to the series _other."
)
WORKFLOW_INFO: Final = Metric(
    "flowcore.workflow.info", "gauge", "{workflow}", ("workflow", "steps"), "Known workflows; always 1.", "max"
)
BUILD_INFO: Final = Metric(
    "flowcore.build.info", "gauge", "{build}", ("version",), "The version of flowcore; always 1.", "max"
)

METRICS: Final = (
    RUN_DURATION,
    RUNS_ACTIVE,
    STEP_DURATION,
    ATTEMPT_DURATION,
    WAIT_DURATION,
    STEPS_READY,
    WORKERS,
    STEP_RETRIES,
    STEP_ERRORS,
    LATE_LANDINGS,
    COMPENSATIONS,
    COMPENSATION_DURATION,
    IDEMPOTENCY_HITS,
    RUN_RECOVERIES,
    LEASE_LOST,
    STORE_DURATION,
    STORE_RUNS,
    LAST_SUCCESS,
    OLDEST_START,
    HOOK_ERRORS,
    HOOK_DURATION,
    CAPPED,
    WORKFLOW_INFO,
    BUILD_INFO,
)
