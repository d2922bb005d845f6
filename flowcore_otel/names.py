"""The catalogue, which defines every span, attribute, log event, metric, unit, label and bucket of flowcore_otel.

Code takes its names from here; documents, dashboards and alert rules are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

SCOPE: Final = "flowcore"
"""the name of the instrumentation scope"""


def _version() -> str:
    try:
        return version("flowcore")
    except PackageNotFoundError:  # flowcore was copied into a program instead of installed
        return "unknown"


SCOPE_VERSION: Final = _version()

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""the semantic conventions that `code.function.name`, `error.type` and `exception.*` follow"""

SPANS: Final[dict[str, str]] = {}
"""the first part of a span's name -> what the span covers"""

ATTRIBUTES: Final[dict[str, str]] = {}
"""span and log attributes -> what they mean"""

LOG_EVENTS: Final[dict[str, str]] = {}
"""names of log events -> what they report"""


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
STEP: Final = _span("step", "a step, from its first attempt's start to its end: attempts, backoffs and waits")
ATTEMPT: Final = _span("attempt", "one attempt of a step or an undo that may have several")
BACKOFF: Final = _span("backoff", "the wait from a failed attempt's end to the next one's start")
AWAIT: Final = _span(
    "await", "the wait for an attempt that had timed out and still ran, before its result or the next attempt"
)
COMPENSATE: Final = _span("compensate", "the undo of a step")
RECOVER: Final = _span("recover", "a takeover: the decisions on the recorded steps")
SUBMIT: Final = _span("submit", "engine.submit, on the caller's side")
IDEMPOTENCY_HIT: Final = _span("idempotency hit", "a request that got the outcome, or a refusal, of an earlier run")
STORE: Final = _span("store", "a call of the store, with store_spans=True")

# Attributes.
WORKFLOW_NAME: Final = _attribute("flowcore.workflow.name", "the workflow")
RUN_ID: Final = _attribute("flowcore.run.id", "the run; on every span, and on the caller's")
RUN_OUTCOME: Final = _attribute(
    "flowcore.run.outcome", "success, failure, compensated, compensation_failed, incomplete, parked or lost"
)
RUN_PARALLELISM: Final = _attribute("flowcore.run.parallelism", "seconds spent in steps, divided by the run's seconds")
RUN_CRITICAL_PATH: Final = _attribute(
    "flowcore.run.critical_path", "the chain of steps that took longest, in order; its 64 longest steps if it has more"
)
RUN_CRITICAL_PATH_LENGTH: Final = _attribute("flowcore.run.critical_path.length", "number of steps on that chain")
RUN_CRITICAL_PATH_SECONDS: Final = _attribute("flowcore.run.critical_path.seconds", "seconds spent on that chain")
RUN_SKIPPED: Final = _attribute("flowcore.run.skipped", "steps whose when= returned False, at most 64")
RUN_UNTRACED_STEPS: Final = _attribute(
    "flowcore.run.untraced_steps", "steps that ran without a span, being past max_step_spans"
)
RUN_STORE_SECONDS: Final = _attribute("flowcore.run.store_seconds", "seconds that the run's store calls took")
STEP_NAME: Final = _attribute("flowcore.step.name", "the step")
STEP_ATTEMPT: Final = _attribute("flowcore.step.attempt", "the attempt's number, from 1; on a step, of its last one")
STEP_MAX_ATTEMPTS: Final = _attribute("flowcore.step.max_attempts", "attempts that the definition allows")
STEP_WAIT: Final = _attribute("flowcore.step.wait", "seconds from ready to start")
STEP_BACKOFF: Final = _attribute("flowcore.step.backoff", "seconds spent waiting between attempts, under all owners")
STEP_DEPENDS_ON: Final = _attribute("flowcore.step.depends_on", "the dependencies, at most 64")
STEP_DEPENDS_ON_COUNT: Final = _attribute("flowcore.step.depends_on.count", "how many dependencies there are")
STEP_OUTCOME: Final = _attribute("flowcore.step.outcome", "success, failure, timeout or cancelled")
BACKOFF_DELAY: Final = _attribute("flowcore.backoff.delay", "the planned seconds")
BACKOFF_REASON: Final = _attribute("flowcore.backoff.reason", "what set the delay: policy, retry_after or predicate")
COMPENSATION_ORDER: Final = _attribute("flowcore.compensation.order", "1 for the first undo of the run")
COMPENSATION_TRIGGER: Final = _attribute(
    "flowcore.compensation.trigger", "the step that failed the run, or `cancelled` if no step did"
)
COMPENSATION_OUTCOME: Final = _attribute("flowcore.compensation.outcome", "success, failure or timeout")
RECOVERY_SKIPPED: Final = _attribute("flowcore.recovery.skipped", "steps found done, at most 64")
RECOVERY_RETRIED: Final = _attribute("flowcore.recovery.retried", "steps found in flight that are retried, at most 64")
RECOVERY_VERIFIED: Final = _attribute("flowcore.recovery.verified", "steps whose outcome verify= reported, at most 64")
RECOVERY_UNDONE: Final = _attribute("flowcore.recovery.undone", "steps that are undone, at most 64")
RECOVERY_HELD: Final = _attribute("flowcore.recovery.held", "steps that hold the run, at most 64")
IDEMPOTENCY_OUTCOME: Final = _attribute(
    "flowcore.idempotency.outcome", "replayed, adopted, in_progress, mismatch or held"
)
IDEMPOTENCY_KEY_HASH: Final = _attribute("flowcore.idempotency.key_hash", "the idempotency key, hashed")
IDEMPOTENCY_AGE: Final = _attribute("flowcore.idempotency.age", "seconds since the original run started")
ORIGINAL_RUN_ID: Final = _attribute("flowcore.original_run.id", "the run that has the key")
ORIGINAL_RUN_SAMPLED: Final = _attribute("flowcore.original_run.sampled", "whether its trace is sampled")
INTERRUPTED_RUN_ID: Final = _attribute("flowcore.interrupted_run.id", "the run that this one resumes")
INTERRUPTED_RUN_SAMPLED: Final = _attribute("flowcore.interrupted_run.sampled", "whether its trace is sampled")
INTERRUPTED_RUN_HOST: Final = _attribute("flowcore.interrupted_run.host", "the host of its last owner, where known")
INTERRUPTED_RUN_PID: Final = _attribute("flowcore.interrupted_run.pid", "the process id of its last owner, where known")
INTERRUPTED_RUN_SINCE: Final = _attribute(
    "flowcore.interrupted_run.since", "when its last owner took it, in seconds since the epoch, where known"
)
INTERRUPTED_RUN_STEP: Final = _attribute(
    "flowcore.interrupted_run.step", "the step that was in flight when its last owner died, where known"
)
LINK_TYPE: Final = _attribute(
    "flowcore.link.type", "on links: depends_on, compensates, request, original_run, interrupted_run or sender"
)
CODE_FUNCTION: Final = _attribute("code.function.name", "the function that the step, or its undo, calls")
ERROR_TYPE: Final = _attribute("error.type", "timeout, cancelled, or the error's class; absent on success")
EXCEPTION_TYPE: Final = _attribute("exception.type", "of a recorded exception: its class")
EXCEPTION_MESSAGE: Final = _attribute("exception.message", "of a recorded exception: its message")
EXCEPTION_STACKTRACE: Final = _attribute("exception.stacktrace", "of a recorded exception: its traceback")
STEP_LATE: Final = _attribute(
    "flowcore.step.late",
    "seconds from an attempt's timeout to its end; on a step: how long after the timeout its result came",
)
WAIT_SECONDS: Final = _attribute("flowcore.wait.seconds", "on a span event of a wait that has ended: how long it took")
WAIT_TIMEOUT: Final = _attribute("flowcore.wait.timeout", "on a span event of a wait that begins: its limit in seconds")
STORE_NAME: Final = _attribute("flowcore.store.name", "memory, sqlite, redis, or a third party's store")
STORE_OPERATION: Final = _attribute("flowcore.store.operation", "the verb of the store")

# Link types.
LINK_DEPENDS_ON: Final = "depends_on"
LINK_COMPENSATES: Final = "compensates"
LINK_REQUEST: Final = "request"
LINK_ORIGINAL_RUN: Final = "original_run"
LINK_INTERRUPTED_RUN: Final = "interrupted_run"
LINK_SENDER: Final = "sender"
"""links to the span that sent the value of a wait"""

# Log events.
EXCEPTION: Final = _log_event("exception", "an exception, on the innermost span that failed with it; also a span event")
RUN_STARTED: Final = _log_event(
    "flowcore.run.started", "a recorded run has started; remains as evidence if the run never ends"
)
STEP_STARTED: Final = _log_event("flowcore.step.started", "the same of a step, with step_events=True")
WAIT_STARTED: Final = _log_event("flowcore.wait.started", "a wait begins; an event of the run's span only")
WAIT_FINISHED: Final = _log_event("flowcore.wait.finished", "a wait has ended; an event of the run's span only")
STEP_COMPLETED_LATE: Final = _log_event("flowcore.step.completed_late", "an attempt that had timed out has ended")


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: a metric is a key on the hot path
class Metric:
    """A metric, with its names in OpenTelemetry and in Prometheus."""

    name: str
    """the name in OpenTelemetry"""
    kind: str
    """counter, histogram, updown or gauge"""
    unit: str
    """UCUM: `s`, or an annotation such as `{run}`"""
    labels: tuple[str, ...]
    """the label names in Prometheus; LABELS has their names in OpenTelemetry"""
    help: str
    multiprocess: Literal["livesum", "livemin", "livemax", "livemostrecent", "max"] = "livesum"
    """how prometheus_client merges a gauge's values of several processes"""
    buckets: tuple[float, ...] = ()
    """upper bounds of a histogram, in seconds"""

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
    "store": STORE_NAME,
    "operation": STORE_OPERATION,
    "status": "flowcore.run.status",
    "state": "flowcore.worker.state",
    "schedule": "flowcore.schedule.name",
    "reason": "flowcore.schedule.reason",
    "steps": "flowcore.workflow.steps",
    "version": "flowcore.version",
}
"""label in Prometheus -> attribute in OpenTelemetry"""

OTHER: Final = "_other"
"""the label value of the series that all values past a limit share"""

ALL_STEPS: Final = "_all"
"""the label value of all steps if `detail` is "workflow" """

UNKNOWN: Final = "_unknown"
"""the label value of stored runs whose workflow no engine lists"""

OTHER_ERROR: Final = "_OTHER"
"""the value of `error.type` for an unknown error, by the semantic conventions"""

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""upper bounds in seconds for runs and steps, unless `buckets=` is given"""

STORE_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10),
)
"""upper bounds in seconds for operations of stores"""

WAIT_BUCKETS: Final = (1, 10, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 259_200, 604_800)
"""upper bounds in seconds for waits, which may take days"""

RUN_OUTCOMES: Final = ("success", "failure", "compensated", "compensation_failed", "incomplete", "parked", "lost")
COMPENSATION_OUTCOMES: Final = ("success", "failure", "timeout")
IDEMPOTENCY_OUTCOMES: Final = ("replayed", "adopted", "in_progress", "mismatch", "held")
RECOVERY_DECISIONS: Final = ("forward", "undo", "hold")
WAIT_OUTCOMES: Final = ("success", "timeout", "failure")
ATTEMPT_OUTCOMES: Final = ("success", "failure", "timeout", "cancelled")
MISSED_REASONS: Final = ("down", "overlap", "error")
REFUSALS: Final = ("flowcore.errors.StoreUnavailable", "flowcore.errors.RunParked")
"""errors of refused runs that have series from the start, because alerts count them: the store was unreachable"""
WORKER_STATES: Final = ("busy", "abandoned")

_OF_RUN = ("workflow", "outcome")
_OF_STEP = ("workflow", "step")
_OF_SCHEDULE = ("workflow", "schedule")
_ENDED = ("workflow", "step", "outcome")


def _seconds(name: str, labels: tuple[str, ...], meaning: str, buckets: tuple[float, ...] = BUCKETS) -> Metric:
    return Metric(name, "histogram", "s", labels, meaning, buckets=buckets)


RUNS: Final = Metric("flowcore.runs", "counter", "{run}", _OF_RUN, "Runs that ended.")
RUN_DURATION: Final = _seconds("flowcore.run.duration", _OF_RUN, "Seconds that runs took.")
RUNS_ACTIVE: Final = Metric("flowcore.runs.active", "updown", "{run}", ("workflow",), "Runs in flight.")
RUNS_QUEUED: Final = Metric(
    "flowcore.runs.queued", "updown", "{run}", ("workflow",), "Runs that were submitted here and have not begun."
)
QUEUE_DURATION: Final = _seconds(
    "flowcore.run.queue.duration", ("workflow",), "Seconds that submitted runs were queued before they began."
)
RUNS_REFUSED: Final = Metric(
    "flowcore.runs.refused",
    "counter",
    "{run}",
    ("workflow", "error_type"),
    "Runs that did not begin because the store failed or refused their claim.",
)
STEP_DURATION: Final = _seconds(
    "flowcore.step.duration", _ENDED, "Seconds that steps took, attempts and backoffs included."
)
ATTEMPT_DURATION: Final = _seconds(
    "flowcore.step.attempt.duration", _ENDED, "Seconds that single attempts took, of steps that may have several."
)
WAIT_DURATION: Final = _seconds(
    "flowcore.step.wait.duration", _OF_STEP, "Seconds that steps were ready before they started."
)
STEPS_READY: Final = Metric(
    "flowcore.steps.ready", "updown", "{step}", ("workflow",), "Steps that are ready and have not started."
)
STEPS_HELD_BACK: Final = Metric(
    "flowcore.steps.held_back",
    "updown",
    "{step}",
    ("workflow",),
    "Ready steps that start only when another step of their run ends, because of max_parallel= or, in an AsyncEngine, "
    "max_workers=.",
)
WORKERS: Final = Metric(
    "flowcore.workers",
    "gauge",
    "{worker}",
    ("state",),
    "Threads of engines: busy, or abandoned in calls that timed out and still run.",
)
WORKERS_LIMIT: Final = Metric(
    "flowcore.workers.limit", "gauge", "{worker}", (), "Threads that may be busy at the same time, over all engines."
)
STEP_ATTEMPTS: Final = Metric("flowcore.step.attempts", "counter", "{attempt}", _ENDED, "Attempts of steps that ended.")
STEP_RETRIES: Final = Metric(
    "flowcore.step.retries", "counter", "{retry}", _OF_STEP, "Failed attempts of steps that were followed by another."
)
BACKOFF_SECONDS: Final = Metric("flowcore.step.backoff", "counter", "s", _OF_STEP, "Seconds between attempts of steps.")
STEP_ERRORS: Final = Metric(
    "flowcore.step.errors", "counter", "{error}", ("workflow", "step", "error_type"), "Failed attempts of steps."
)
LATE_COMPLETIONS: Final = Metric(
    "flowcore.step.late_completions", "counter", "{attempt}", _OF_STEP, "Attempts that ended after they had timed out."
)
COMPENSATIONS: Final = Metric("flowcore.compensations", "counter", "{undo}", _ENDED, "Undos of steps.")
COMPENSATION_DURATION: Final = _seconds(
    "flowcore.compensation.duration", _ENDED, "Seconds that undos took, attempts and backoffs included."
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
STORE_DURATION: Final = _seconds(
    "flowcore.store.operation.duration",
    ("store", "operation", "outcome"),
    "Seconds that calls of stores took.",
    STORE_BUCKETS,
)
STORE_RUNS: Final = Metric(
    "flowcore.store.runs",
    "gauge",
    "{run}",
    ("workflow", "status"),
    "Runs in the store that nothing drives, when last counted: held, parked, incomplete, expired or waiting; overdue: "
    "waiting or queued, and due for five minutes (a waiting one counts as waiting, too).",
    "livemostrecent",
)
STORE_WAITING: Final = Metric(
    "flowcore.store.runs.waiting",
    "gauge",
    "{run}",
    _OF_STEP,
    "Runs in the store that wait, by the step they wait for, when last counted; estimated above 1,000 runs of a "
    "workflow.",
    "livemostrecent",
)
WAITED: Final = _seconds(
    "flowcore.wait.duration",
    _ENDED,
    "Seconds that steps without a function waited for a value or a time, under all owners.",
    WAIT_BUCKETS,
)
LAST_SUCCESS: Final = Metric(
    "flowcore.run.last_success.timestamp", "gauge", "s", ("workflow",), "When a run last succeeded.", "max"
)
LAST_END: Final = Metric(
    "flowcore.run.last_end.timestamp", "gauge", "s", _OF_RUN, "When a run last ended with this outcome.", "max"
)
LAST_RECOVERY: Final = Metric(
    "flowcore.recovery.last_round.timestamp", "gauge", "s", (), "When a round of recovery last succeeded.", "max"
)
OLDEST_START: Final = Metric(
    "flowcore.run.oldest_start.timestamp",
    "gauge",
    "s",
    ("workflow",),
    "When the oldest run in flight started; +Inf when there is none.",
    "livemin",
)
SCHEDULE_NEXT: Final = Metric(
    "flowcore.schedule.next_fire.timestamp",
    "gauge",
    "s",
    _OF_SCHEDULE,
    "When the next fire of a schedule is to begin; in the past while it has not.",
    "livemax",
)
SCHEDULE_LATENESS: Final = _seconds("flowcore.schedule.lateness", _OF_SCHEDULE, "Seconds by which fires began late.")
SCHEDULE_MISSED: Final = Metric(
    "flowcore.schedule.missed", "counter", "{fire}", ("workflow", "schedule", "reason"), "Fires that were not begun."
)
SCHEDULE_LAST_SUCCESS: Final = Metric(
    "flowcore.schedule.last_success.timestamp",
    "gauge",
    "s",
    _OF_SCHEDULE,
    "When a run of a schedule last succeeded.",
    "max",
)
HOOK_ERRORS: Final = Metric("flowcore.hook.errors", "counter", "{error}", ("hook",), "Errors raised by hooks.")
HOOK_DURATION: Final = Metric(
    "flowcore.hook.duration",
    "counter",
    "s",
    ("hook",),
    "Seconds spent in hooks; estimated from a sample when there are many runs.",
)
CAPPED: Final = Metric(
    "flowcore.telemetry.capped", "counter", "{measurement}", ("hook",), "Measurements that went to the series _other."
)
CLOCK: Final = Metric(
    "flowcore.clock.timestamp",
    "gauge",
    "s",
    (),
    "The clock of the process, when it was read; the other timestamps of the process are by this clock.",
    "livemostrecent",
)
WORKFLOW_INFO: Final = Metric(
    "flowcore.workflow.info", "gauge", "{workflow}", ("workflow", "steps"), "Known workflows; always 1.", "max"
)
BUILD_INFO: Final = Metric(
    "flowcore.build.info", "gauge", "{build}", ("version",), "The version of flowcore; always 1.", "max"
)
APP_INFO: Final = Metric(
    "flowcore.app.info", "gauge", "{app}", ("version",), "The version of the service, where known; always 1.", "max"
)

METRICS: Final = tuple(metric for metric in list(globals().values()) if isinstance(metric, Metric))
"""all metrics"""
