"""Mutants of the engine. Each breaks a promise, and the simulation must find it.

A mutant replaces one piece of the source of a module, mostly in `flowcore._kernel`. The code objects of the changed
module are put into the functions of the live one, so that all modules that have imported these run the mutant.
"""

import importlib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MUTANTS", "Mutant", "applied", "swapped"]


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    old: str
    new: str


ROOMS = {
    "keys": "",
    "retry": "",
    **dict.fromkeys(
        ("claim", "ledger", "checkpoints", "unsaved", "fast_checkpoints", "restoring", "takeover", "waiting"),
        "_durable.",
    ),
}
"""the package of each module that is not in the kernel"""


def m(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, f"flowcore.{ROOMS.get(module, '_kernel.')}{module}", old, new)


MUTANTS = (
    # which steps are undone, and in which order
    m("undo in forward order", "undo", "run.to_undo.pop()", "run.to_undo.pop(0)"),
    m(
        "drop the last undo",
        "undo",
        "while run.is_undone_here and run.to_undo:",
        "while run.is_undone_here and len(run.to_undo) > 1:",
    ),
    m("undo nothing at all", "undo", "if not run.to_undo:", "if run.to_undo:"),
    m("undo before abandoned calls have completed", "undo", "yield from wait_for_abandoned(run)", "collect_late(run)"),
    m("parallel undo in definition order", "undo_order", "if not node.successors])", "])"),
    m(
        "parallel undo does not wait for dependants",
        "undo_order",
        "[len(node.successors) for node in plan.nodes]",
        "[min(1, len(node.successors)) for node in plan.nodes]",
    ),
    m(
        "steps of unknown outcome are not undone",
        "set_aside",
        "raised = end.status is Status.FAILURE and not node.undo_attempted",
        "raised = not node.undo_attempted",
    ),
    m(
        "steps that raised are always undone",
        "set_aside",
        "raised = end.status is Status.FAILURE and not node.undo_attempted",
        "raised = False",
    ),
    m(
        "undo=attempted is ignored",
        "set_aside",
        "raised = end.status is Status.FAILURE and not node.undo_attempted",
        "raised = end.status is Status.FAILURE",
    ),
    m(
        "done steps are not undone",
        "run_state",
        "if node.compensation is not None:\n                self.to_undo.append(node)\n            self.unblock",
        "if node.compensation is None:\n                self.to_undo.append(node)\n            self.unblock",
    ),
    m(
        "a step that completed late is not undone",
        "undo",
        "return effect and call.node",
        "return not effect and call.node",
    ),
    m(
        "a failed undo ends the undoing",
        "undo",
        "        run.undo_errors[node.name] = end.error",
        "        run.undo_errors[node.name] = end.error\n        run.to_undo.clear()",
    ),
    m(
        "a failed undo counts as done",
        "undo",
        "    if isinstance(end.error, Exception):\n        run.undo_errors",
        "    if False:\n        run.undo_errors",
    ),
    m(
        "an undo is tried once",
        "undo",
        "undo.fn, undo.retry, undo.timeout, scope, undo=True",
        "undo.fn, None, undo.timeout, scope, undo=True",
    ),
    m(
        "an undo has no timeout",
        "undo",
        "undo.fn, undo.retry, undo.timeout, scope, undo=True",
        "undo.fn, undo.retry, None, scope, undo=True",
    ),
    m("the wrong trigger", "undo", 'run.failed_step or "cancelled"', "node.name"),
    m("undos all have number one", "run_state", "self.undo_order += 1", "self.undo_order = 1"),
    m(
        "undo is cancelled with its run",
        "attempts",
        "        if run.stopped and not undo:\n",
        "        if run.stopped:\n",
    ),
    m(
        "an undo has a deadline",
        "attempts",
        "(run.deadline is not None and not self.undo)\n        if",
        "run.deadline is not None\n        if",
    ),
    # the inline path
    m(
        "inline, the undo of every second step is forgotten",
        "inline",
        "        if node.compensation is not None:",
        "        if node.compensation is not None and node.index % 2 == 0:",
    ),
    m(
        "inline, results are lost",
        "inline",
        "            results[node.name] = value\n        if",
        "            pass\n        if",
    ),
    m(
        "inline, results of observed runs are lost",
        "inline",
        "            results[node.name] = value  # before",
        "            pass  # before",
    ),
    m(
        "inline, a cancelled run continues",
        "inline",
        "node.inline[is_async] and not run.stopped:",
        "node.inline[is_async]:",
    ),
    m("inline, a step starts before its last dependency", "inline", "if not counts[index]:", "if counts[index] >= 0:"),
    m("inline, what becomes ready beside the next step is forgotten", "inline", "ready.append(index)", "pass"),
    m(
        "inline, a result that is to be awaited is kept as it is",
        "inline",
        "if type(value) not in PLAIN and is_awaitable(value):",
        "if False:",
    ),
    m(
        "inline, a step that failed has no attempt",
        "inline",
        "FirstAttempt(ctx, (None, error), scope, attempt)",
        "None",
    ),
    m(
        "inline, a step that suspends has no attempt",
        "inline",
        "FirstAttempt(ctx, (None, None), scope, attempt, suspended)",
        "None",
    ),
    m("inline, a step that waits is done", "steps", "first.outcome = yield first.suspended", "yield first.suspended"),
    m(
        "inline, the end of a step is not emitted",
        "inline",
        "            events.finished(",
        "            (lambda *_: None)(",
    ),
    m(
        "inline, what is ready is not emitted",
        "inline",
        "            events.ready(following,",
        "            (lambda *_: None)(following,",
    ),
    m(
        "inline, steps with limits run too",
        "inline",
        "while node is not None and node.inline[is_async]",
        "while node is not None",
    ),
    m(
        "success is reported of a run that stopped inline",
        "run",
        "or not run.succeed():",
        "or not (run.succeed() or True):",
    ),
    # which steps start
    m(
        "start after a failure",
        "run_state",
        "        if not self.stopped:\n            counts =",
        "        if True:\n            counts =",
    ),
    m(
        "start before the last dependency",
        "run_state",
        "                counts[index] -= 1\n                if not counts[index]:",
        "                counts[index] -= 1\n                if counts[index] >= 0:",
    ),
    m(
        "a sibling in backoff tries again after a failure",
        "attempts",
        "        if run.stopped and not undo:\n",
        "        if False:\n",
    ),
    m(
        "last come, first started",
        "run_state",
        "            return self.plan.nodes[self.ready.popleft()]\n        self.running",
        "            return self.plan.nodes[self.ready.pop()]\n        self.running",
    ),
    m("max_parallel is ignored", "run_state", "self.limit = min(self.limit, workflow.max_parallel)", "pass"),
    m("no worker helps", "steps", "if run.ready and not run.worker_requested and run.needs_worker():", "if False:"),
    m(
        "when= outlasts the deadline",
        "steps",
        "    if run.deadline is not None:\n        limit =",
        "    if False:\n        limit =",
    ),
    m("skipped steps are run", "steps", "return None if runs else StepEnd(_SKIPPED)", "return None"),
    m(
        "when= is turned around",
        "steps",
        "return None if runs else StepEnd(_SKIPPED)",
        "return None if not runs else StepEnd(Status.SKIPPED)",
    ),
    m(
        "dependants of a skipped step never run",
        "run_state",
        "            return None if announced else self._next()\n\n    def unblock",
        "            self.running -= 1\n            return None\n\n    def unblock",
    ),
    m("on_failure=cancel is ignored", "steps", 'cancel = run.workflow.on_failure == "cancel"', "cancel = False"),
    m("siblings are always cancelled", "steps", 'cancel = run.workflow.on_failure == "cancel"', "cancel = True"),
    # attempts
    m("one attempt too few", "attempts", "self.retry.after(self.number,", "self.retry.after(self.number + 1,"),
    m("one attempt too many", "attempts", "self.retry.after(self.number,", "self.retry.after(self.number - 1,"),
    m(
        "the allowed attempts are reported wrong",
        "attempts",
        "self.allowed = 1 if retry is None else retry.attempts",
        "self.allowed = 1",
    ),
    m("Fatal is tried again", "retry", "if any(isinstance(one, Fatal) for one in errors):", "if False:"),
    m("RetryAfter is fatal", "retry", "            errors = _flattened(error)\n", "            return None\n"),
    m(
        "RetryAfter is ignored",
        "retry",
        'Pause(max(waits), "retry_after") if waits else self._by_policy(attempt, error, random, context)',
        "self._by_policy(attempt, error, random, context)",
    ),
    m("max_elapsed is ignored", "retry", "elapsed + pause.delay > self.max_elapsed", "False"),
    m(
        "max_delay is ignored",
        "retry",
        "return min(self.initial * self.factor ** (n - 1), self.max_delay)",
        "return self.initial * self.factor ** (n - 1)",
    ),
    m("on= is ignored", "retry", "if isinstance(error, on) else None", "if isinstance(error, object) else None"),
    m("the backoff does not grow", "retry", "self.factor ** (n - 1)", "self.factor ** 0"),
    m(
        "no jitter",
        "retry",
        "self.bound(n) * (random or some_random)() if self.jitter else self.bound(n)",
        "self.bound(n) * 1.5 if self.jitter else self.bound(n)",
    ),
    m(
        "the number of attempts is reported wrong",
        "attempts",
        "return StepEnd(Status.SUCCESS, outcome[0], None, number)",
        "return StepEnd(Status.SUCCESS, outcome[0], None, 1)",
    ),
    m(
        "elapsed time is forgotten",
        "attempts",
        "elapsed = 0.0 if self.started is None else run.settings.clock() - self.started",
        "elapsed = 0.0",
    ),
    m(
        "no waiting between attempts",
        "attempts",
        "        if waits_for:\n            yield Sleep",
        "        if False:\n            yield Sleep",
    ),
    m(
        "two attempts at once",
        "attempts",
        "            if outstanding is not None:\n                late",
        "            if False:\n                late",
    ),
    m(
        "a result that came in time is thrown away",
        "attempts",
        "                if late is not None:\n                    return late",
        "                if late is not None:\n                    return end",
    ),
    m(
        "cancelled counts as done",
        "attempts",
        'return StepEnd(Status.CANCELLED, None, StepCancelled(f"{what} was cancelled while it ran."), number)',
        'return StepEnd(Status.SUCCESS, None, StepCancelled(f"{what} was cancelled while it ran."), number)',
    ),
    m(
        "step_timeout is ignored",
        "attempts",
        "self.until = None if step_timeout is None else self.started + step_timeout",
        "self.until = None",
    ),
    m(
        "the deadline is ignored",
        "attempts",
        '(run.deadline, "deadline") if run.deadline is not None and not self.undo else None',
        '(now + 1e6, "deadline")',
    ),
    m(
        "the longest limit counts",
        "attempts",
        "moment, name = min(limit for limit in limits",
        "moment, name = max(limit for limit in limits",
    ),
    m(
        "SystemExit is an ordinary failure",
        "attempts",
        "failed = undo or (isinstance(outcome[1], Exception) and (asks or not run.interrupted))",
        "failed = undo or asks or not run.interrupted",
    ),
    m(
        "CancelledError out of a step cancels its run",
        "attempts",
        "        outcome = (None, cancelled)\n",
        "        return StepEnd(Status.CANCELLED, None, outcome[1], number)\n",
    ),
    m(
        "a retry that is due is not made",
        "attempts",
        "            if pause is None:",
        "            if pause is not None:",
    ),
    # the end of a run
    m(
        "success with steps unrun",
        "run_state",
        "            if not self.stopped:\n                self.finished = Status.SUCCESS\n            return not self.stopped",
        "            self.finished = Status.SUCCESS\n            return True",
    ),
    m("held is forgotten", "run", "held = run.held or status is Status.COMPENSATION_FAILED", "held = False"),
    m(
        "the pivot is ignored",
        "steps",
        "            run.past_pivot = True\n        after",
        "            run.past_pivot = False\n        after",
    ),
    m(
        "the last error is raised, not the first",
        "stopping",
        "    if first:\n        run.undone",
        "    run.error, run.failed_step = error, step\n    if first:\n        run.undone",
    ),
    m(
        "the end of the run is not reported",
        "run",
        "    if scope is not None:\n        emit.run_finished(run, scope, finished)\n",
        "",
    ),
    m(
        "the end of a step is not reported",
        "steps",
        "        emit_steps.step_finished(run, node, attempts.scope, end)",
        "        end.error is None and emit_steps.step_finished(run, node, attempts.scope, end)",
    ),
    m(
        "the end of an attempt is reported as a failure",
        "emit_steps",
        "number, allowed, undo, end.status,",
        "number, allowed, undo, Status.FAILURE,",
    ),
    m(
        "late completions are not reported",
        "undo",
        "    emit_steps.completed_late(run, call",
        "    run.parked and emit_steps.completed_late(run, call",
    ),
    m(
        "an attempt that completes late, and is awaited before the next one, is not reported",
        "attempts",
        "        emit_steps.completed_late(run, call",
        "        run.parked and emit_steps.completed_late(run, call",
    ),
    m(
        "the finish is not stored",
        "run",
        "    if not run.claimed:\n        return finished, None",
        "    if not run.parked:\n        return finished, None",
    ),
    m(
        "the key's generation does not rise",
        "claim",
        "run.generation, run.fence = claimed.generation, claimed.fence",
        "run.generation, run.fence = 0, claimed.fence",
    ),
    m(
        "done steps are done again past the pivot",
        "restoring",
        "OVER: Final = frozenset({Status.SUCCESS, Status.SKIPPED})",
        "OVER: Final = frozenset({Status.SKIPPED})",
    ),
    m("an undo has its step's key", "keys", '"undo" if undo else "do"', '"do"'),
    m("two steps have one key", "keys", 'step, "undo" if undo', '"", "undo" if undo'),
)


TABLES = (bool, int, float, str, tuple, frozenset, dict)


def source_of(module: types.ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text(encoding="utf-8")


def functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """Return the functions and methods that a module defines, except setters of properties, by qualified name."""
    found: dict[str, types.FunctionType] = {}
    todo: list[Any] = list(vars(module).values())
    while todo:
        one = todo.pop()
        one = one.fget if isinstance(one, property) else getattr(one, "__func__", one)
        if isinstance(one, types.FunctionType) and one.__module__ == module.__name__:
            found[one.__qualname__] = one
        elif isinstance(one, type) and one.__module__ == module.__name__:
            todo.extend(vars(one).values())
    return found


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from codes(const)


@contextmanager
def swapped(module: types.ModuleType, code: types.CodeType) -> Iterator[None]:
    """Run the functions of `module` with the bodies and tables of `code`, another version of the module."""
    live = functions(module)
    other: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(code, other)
    tables = {name: value for name, value in vars(module).items() if isinstance(value, TABLES)}
    tables = {name: value for name, value in tables.items() if not name.startswith("__") and name in other}
    mine: dict[str, types.CodeType] = {}
    for one in codes(code):
        mine.setdefault(one.co_qualname, one)  # The getter of a property comes before its setter.
    before = {name: function.__code__ for name, function in live.items()}
    try:
        for name, function in live.items():
            if name in mine:
                function.__code__ = mine[name]
        vars(module).update({name: other[name] for name in tables})
        yield
    finally:
        vars(module).update(tables)
        for name, function in live.items():
            function.__code__ = before[name]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Run the block with the mutant in place of the real code."""
    module = importlib.import_module(mutant.module)
    source = source_of(module)
    count = source.count(mutant.old)
    assert count == 1, (
        f"{mutant.name}: {mutant.old!r} is {count} times in {mutant.module}: adapt the mutant to its new source"
    )
    assert module.__file__ is not None
    with swapped(module, compile(source.replace(mutant.old, mutant.new), module.__file__, "exec")):
        yield
