"""Typed lifecycle events of runs, and the hooks that receive them.

Every event of a run carries `workflow`, `run_id`, `at` (monotonic seconds, the engine's clock) and `state`: a dict
that lives as long as the run in this process, shared by all its events, for hooks to keep their own things in.

| event | when | what else it carries |
|---|---|---|
| EngineStarted | an engine is made (no run) | workers, hooks, max_workers |
| WorkflowRegistered | an engine first meets a workflow (no run: `workflow`, `at`) | steps, max_attempts |
| RunSubmitted | `engine.submit`, on the caller's thread | key, propagation |
| RunRequested | before the claim; hooks may fill `carrier` | key, wall, carrier, submitted, recovering |
| IdempotencyHit | the claim met an earlier run: ends the request | key, outcome, original_run_id, original, age |
| RunRefused | the claim failed with `error`: ends the request | key, error |
| RunStarted * | the run is ours | key, wall, carrier, fence, interrupted_run_id, interrupted, waiting, interrupted_by, after_wait |
| RunRecovered | after RunStarted of a takeover | decision, skipped, retried, verified, undone, held, carriers |
| RunJoined | a step or undo of a run that another process drives comes here (on Temporal) | wall, carrier, carriers |
| RunFinished | the end of what RunStarted began | outcome, duration, error, skipped, undone, elsewhere, expected |
| StepReady | a step's dependencies are done | step |
| StepSkipped | `when=` said no | step, depends_on |
| StepStarted * | before the first attempt; hooks may fill `carrier` | step, waited, depends_on, max_attempts, function, carrier |
| AttemptStarted * | before each attempt, of a step or of an undo | step, attempt, max_attempts, undo |
| AttemptFinished | after it | step, attempt, undo, outcome, duration, error, expected |
| BackoffStarted | a failed attempt will be made again | step, attempt, undo, delay, reason, error |
| StepFinished | after the last attempt | step, outcome, duration, attempts, max_attempts, waited, backoff, error, depends_on, expected |
| WaitStarted | a step without a function waits | step, timeout, sleeps |
| WaitFinished | its value, or its time, has come, or neither in time | step, outcome, waited, error, sender, depends_on |
| ValueSent | `engine.send`, on the caller's thread; hooks may fill `carrier` | step, key, carrier |
| StepCompletedLate | an abandoned attempt came back after all | step, attempt, undo, outcome, error, late |
| CompensationStarted * | before an undo's first attempt | step, order, trigger, max_attempts, function |
| CompensationFinished | after its last | step, order, trigger, outcome, duration, attempts, backoff, error |
| LeaseLost | another owner runs on | |
| MaintenanceStarted * | before a heartbeat, a poll, a recovery round (no run) | kind |
| MaintenanceFinished | after it | kind, duration, error, wall |
| StoreCalled | a verb of the store has returned or failed | store, operation, outcome, duration, error |
| StoreSurveyed | a recovery round has counted what waits (no run) | counts |
| SchedulePlanned | an engine waits for another fire of a schedule (no run) | schedule, due |
| ScheduleFired | an engine has begun the run of a fire (no run) | schedule, scheduled_at, lateness |
| ScheduleMissed | fires will not be begun (no run) | schedule, count, reason, last |
| HookFailed | a hook raised (emitted to the other hooks) | hook, error |
| HooksMeasured | after the last event of some runs; to hooks that name it in `wants` | seconds |

Events marked * are start events: a hook may return a context manager for them, the *scope*, which is entered in the
context that user code then runs in and exited after the matching finish event, in reverse order. Each start event has
its finish event on every path. An event that no hook wants is not built.

An engine calls its own hooks, and those of the process (`add_process_hook`) of whose class it has none.

All durations are monotonic seconds. Events are read-only by contract.
"""

from __future__ import annotations

from ..fires import schedule_of
from .hooks import SKIP_RUN, Hook, Hooks
from .loggers import Logger, LoggingHook, PrintLogger
from .process import add_process_hook, remove_process_hook
from .progress import ProgressHook
from .records import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    EngineStarted,
    Event,
    HookFailed,
    HooksMeasured,
    IdempotencyHit,
    LeaseLost,
    MaintenanceFinished,
    MaintenanceStarted,
    RunFinished,
    RunJoined,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    ScheduleFired,
    ScheduleMissed,
    SchedulePlanned,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
    StoreSurveyed,
    ValueSent,
    WaitFinished,
    WaitStarted,
    WorkflowRegistered,
)

__all__ = [
    "SKIP_RUN",
    "AttemptFinished",
    "AttemptStarted",
    "BackoffStarted",
    "CompensationFinished",
    "CompensationStarted",
    "EngineStarted",
    "Event",
    "Hook",
    "HookFailed",
    "Hooks",
    "HooksMeasured",
    "IdempotencyHit",
    "LeaseLost",
    "Logger",
    "LoggingHook",
    "MaintenanceFinished",
    "MaintenanceStarted",
    "PrintLogger",
    "ProgressHook",
    "RunFinished",
    "RunJoined",
    "RunRecovered",
    "RunRefused",
    "RunRequested",
    "RunStarted",
    "RunSubmitted",
    "ScheduleFired",
    "ScheduleMissed",
    "SchedulePlanned",
    "StepCompletedLate",
    "StepFinished",
    "StepReady",
    "StepSkipped",
    "StepStarted",
    "StoreCalled",
    "StoreSurveyed",
    "ValueSent",
    "WaitFinished",
    "WaitStarted",
    "WorkflowRegistered",
    "add_process_hook",
    "remove_process_hook",
    "schedule_of",
]
