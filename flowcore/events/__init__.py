"""Typed lifecycle events of runs, and the hooks that receive them.

Every event of a run carries `workflow`, `run_id`, `at` (monotonic seconds, the engine's clock) and `state`: a dict for
the hooks' own data, which all events of the run in this process share and which lives as long as the run does here.

| event | when | what else it carries |
|---|---|---|
| EngineStarted | an engine was made (no run) | workers, hooks, max_workers |
| WorkflowRegistered | an engine uses a workflow for the first time (no run: `workflow`, `at`) | steps, max_attempts, waits, timeouts |
| RunSubmitted | `engine.submit` was called (on the caller's thread) | key, propagation |
| RunDequeued | a submitted run has left the queue of its engine | waited, begins |
| RunRequested | before the claim; hooks may fill `carrier` | key, wall, carrier, submitted, recovering |
| IdempotencyHit | the key has an earlier run: ends the request | key, outcome, original_run_id, original, age |
| RunRefused | the claim failed with `error`: ends the request | key, error, overtaken, stopped |
| RunStarted * | the run begins | key, wall, carrier, fence, interrupted_run_id, interrupted, waiting, interrupted_by, after_wait, held_back |
| RunRecovered | after the RunStarted of a takeover | decision, skipped, retried, verified, undone, held, carriers, left |
| RunJoined | a step, an undo or the end of a run of another process's caller comes here (on Temporal) | wall, carrier, carriers |
| RunFinished | the run has ended, or waits in its store | outcome, duration, error, skipped, undone, elsewhere, expected, counted, left |
| RunEnded | the run has ended in the process that drove it for another one (on Temporal) | key, wall, outcome, duration, counted |
| StepReady | all dependencies of a step are done | step |
| StepSkipped | `when=` returned False | step, depends_on |
| StepStarted * | before the first attempt; hooks may fill `carrier` | step, waited, depends_on, max_attempts, function, carrier, resumed |
| AttemptStarted * | before each attempt, of a step or of an undo | step, attempt, max_attempts, undo |
| AttemptFinished | after each attempt | step, attempt, max_attempts, undo, outcome, duration, error, expected |
| BackoffStarted | an attempt has failed, and another one will be made | step, attempt, max_attempts, undo, delay, reason, error |
| StepFinished | after the last attempt | step, outcome, duration, attempts, max_attempts, waited, backoff, error, depends_on, expected, earlier |
| WaitStarted | a step without a function begins to wait | step, timeout, sleeps |
| WaitFinished | a value has come, a sleep is over, or a wait timed out | step, outcome, waited, error, sender, depends_on |
| ValueSent | `engine.send` was called (on the caller's thread); hooks may fill `carrier` | step, key, carrier |
| StepCompletedLate | an abandoned attempt has completed | step, attempt, undo, outcome, error, late |
| CompensationStarted * | before the first attempt of an undo | step, order, trigger, max_attempts, function |
| CompensationFinished | after its last attempt | step, order, trigger, outcome, duration, attempts, backoff, error |
| LeaseLost | another owner has taken the run over | |
| MaintenanceStarted * | before work of the engine's own, such as a heartbeat, poll or recovery round (no run) | kind |
| MaintenanceFinished | after that work | kind, duration, error, wall, is_open |
| StoreCalled | a verb of the store has returned or failed | store, operation, outcome, duration, error |
| StoreSurveyed | the engine has counted the unfinished runs in its store (no run) | counts, waiting, is_open |
| SchedulePlanned | the next fire that an engine waits for has changed (no run) | schedule, due, is_open |
| ScheduleFired | an engine has begun the run of a fire (no run) | schedule, scheduled_at, lateness |
| ScheduleMissed | fires of a schedule were skipped (no run) | schedule, count, reason, last |
| HookFailed | a hook raised (emitted to the other hooks) | hook, error |
| HooksMeasured | after the last event of some runs; only for hooks that name it in `wants` | seconds |

Events marked * are start events. For these a hook may return a context manager, the *scope*. It is entered in the
context in which user code then runs, and exited after the matching finish event; several scopes are exited in reverse
order. Each start event has its finish event on every path. The events of one step arrive in the order in which they
happen, from StepReady to StepFinished; those of steps that run beside each other arrive in any order. An event that no
hook wants is not built.

An engine calls its own hooks, and each hook of the process (`add_process_hook`) unless it has one of the same class.

All durations are monotonic seconds. Hooks must not change events.
"""

from __future__ import annotations

from ..fires import schedule_of
from .base import Event
from .hooks import SKIP_RUN, Hook, Hooks
from .loggers import Logger, LoggingHook, PrintLogger
from .of_engines import (
    EngineStarted,
    HookFailed,
    HooksMeasured,
    MaintenanceFinished,
    MaintenanceStarted,
    ScheduleFired,
    ScheduleMissed,
    SchedulePlanned,
    StoreSurveyed,
    WorkflowRegistered,
)
from .process import add_process_hook, remove_process_hook
from .progress import ProgressHook
from .records import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    IdempotencyHit,
    LeaseLost,
    RunDequeued,
    RunEnded,
    RunFinished,
    RunJoined,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
    ValueSent,
    WaitFinished,
    WaitStarted,
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
    "RunDequeued",
    "RunEnded",
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
