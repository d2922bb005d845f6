"""How a step with `executor=` runs: in the executor, perhaps in another process, on a copy of the run's values.

A thread of the engine waits for the result, so limits, cancellations and late completions work as for any other step
that is not async.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING, Any, cast

from ._wire import RemoteTraceback, StepReply, pack_step, run_packed_step, unpack_error
from .context import AttemptContext, Context
from .errors import NotSerializable, ResultLost, safe_repr, safe_str
from .snapshot import StepInputs

if TYPE_CHECKING:
    from .step import Step

__all__ = ["InExecutor"]


class InExecutor:
    """What an engine calls in place of a step's function. It runs the function in the step's executor."""

    __slots__ = ("_executor", "_step")

    def __init__(self, step: Step[Any], executor: concurrent.futures.Executor) -> None:
        self._step = step
        self._executor = executor

    def __call__(self, ctx: Context[Any]) -> Any:
        """Run the step's function in the executor and return its result.

        Raises the function's own error, NotSerializable if a value cannot be pickled, or ResultLost if the outcome of
        the function did not come back.
        """
        step = safe_repr(ctx.step)
        fn, packed = pack_step(self._step.fn, _inputs(ctx), ctx._run.crossings())
        try:
            future = self._executor.submit(run_packed_step, fn, packed)
        except Exception as error:
            error.add_note(f"step {step} did not start: its executor= refused the call.")
            raise
        if isinstance(ctx, AttemptContext):
            ctx.when_abandoned(future.cancel)
        try:
            reply = future.result()
        except Exception as error:
            if _never_sent(error):
                what = f"step {step} has executor=, which cannot send its function to another process"
                raise NotSerializable(
                    f"{what}: {safe_str(error, 200)}. Define it in a module, not in a function."
                ) from error
            raise ResultLost(
                f"the executor of step {step} lost its worker ({type(error).__name__}: {safe_str(error, 200)}). Whether the step "
                "had its effect is unknown."
            ) from error
        except BaseException:  # a Ctrl-C while waiting
            future.cancel()
            raise
        return _unpacked(reply, step)

    def here(self, ctx: Context[Any]) -> Any:
        """Run the function in this thread, for simulations. Its inputs and its result are pickled all the same."""
        return _unpacked(
            run_packed_step(*pack_step(self._step.fn, _inputs(ctx), ctx._run.crossings())), safe_repr(ctx.step)
        )


def _never_sent(error: Exception) -> bool:
    """Whether the executor's own pickling of the function failed."""
    import pickle

    return isinstance(error, pickle.PicklingError | AttributeError | TypeError)


def _unpacked(reply: StepReply, step: str) -> Any:
    import pickle

    try:
        if reply.error is None:
            return pickle.loads(reply.value or b"")  # noqa: S301 - our own function wrote it
        error = pickle.loads(reply.error)  # noqa: S301 - see above
        error = unpack_error(cast("dict[str, Any]", error)) if isinstance(error, dict) else error
    except Exception as failure:
        what = f"step {step} has executor=, and its outcome cannot be unpickled in this process"
        raise ResultLost(
            f"{what} ({safe_str(failure, 200)}). It may have had its effect.", done=reply.error is None
        ) from failure
    if reply.done:  # the function has returned, but its result cannot be pickled
        raise ResultLost(f"{safe_str(error)}. It has run, so its effect is undone.", done=True) from error
    error.__cause__ = RemoteTraceback(reply.trace)
    raise error


def _inputs(ctx: Context[Any]) -> StepInputs:
    """Return the inputs of the attempt: a copy of the run's values, and the results that its ctx may read."""
    view = ctx._run
    with view.lock:
        values = dict(view.values)
        results = {name: value for name, value in view.results.items() if ctx._sees(name)}
    aliases = ctx.node.step.aliases or {}
    names = {(other.workflow.name, other.name): name for other, name in aliases.items() if other.workflow is not None}
    left = None if ctx.deadline is None else ctx.deadline - time.monotonic()
    return StepInputs(
        workflow=view.workflow.name,
        step=ctx.step,
        run_id=ctx.run_id,
        attempt=ctx.attempt,
        step_key=ctx.step_key,
        fence=ctx.fence,
        scheduled_at=ctx.scheduled_at,
        deadline=None if left is None else time.time() + left,
        values=values,
        results=results,
        names=names,
        input=None if view.workflow.input is None else ctx.input,
    )
