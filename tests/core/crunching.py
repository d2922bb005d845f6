"""Functions that test_executor.py has run in another process, where this module is imported."""

import logging
import os
import signal
import threading
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from flowcore import Landed, NotLanded, Workflow


class Rejected(Exception):
    """An error that pickle cannot restore: its __init__ wants more than its message."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{why} ({code})")
        self.code = code


class Priced(Exception):
    """An error that pickle would change: its __init__ formats its argument."""

    def __init__(self, price: object) -> None:
        super().__init__(f"too dear: {price}")
        self.price = price


def crunch(ctx: Any) -> dict[str, Any]:
    seen = {"n": ctx["n"], "one": ctx["one"], "keys": sorted(ctx), "attempt": ctx.attempt, "step_key": ctx.step_key}
    return seen | {"pid": os.getpid(), "run": ctx.run_id, "step": ctx.step, "limited": ctx.deadline is not None}


def write(ctx: Any) -> None:
    ctx["more"] = 1


def reject(ctx: Any) -> None:
    raise Rejected(7, why="no such row")


def price(ctx: Any) -> None:
    raise Priced(5)


def give_a_lock(ctx: Any) -> Any:
    return threading.Lock()


def fail_first(ctx: Any) -> int:
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return int(ctx.attempt)


def die(ctx: Any) -> None:
    Path(ctx["began"]).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(ctx: Any) -> str:
    """Begin, then wait for the file that lets it end."""
    Path(ctx["began"]).touch()
    until = time.monotonic() + 30
    while not Path(ctx["end"]).exists() and time.monotonic() < until:
        time.sleep(0.005)
    return "ended late"


def make_a_span(ctx: Any) -> tuple[str, int, int, int]:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("there").start_as_current_span("there") as span:
        made: Any = span
        return made.name, made.context.trace_id, made.context.span_id, made.parent.span_id


def log_ids(ctx: Any) -> Any:
    from flowcore_otel import LogContext

    record: Any = logging.LogRecord("there", logging.INFO, "", 0, "", (), None)
    LogContext().filter(record)
    return record.flowcore_run_id, record.flowcore_step, record.flowcore_attempt


def landed(ctx: Any) -> Any:
    return Landed("verified")


def not_landed(ctx: Any) -> Any:
    return NotLanded


def decorated(executor: Executor) -> Workflow:
    """A workflow whose functions are replaced by their steps in this module, as decorators do."""
    wf = Workflow("decorated")
    globals()["doubled"] = wf.step(executor=executor)(doubled)
    return wf


def doubled(ctx: Any) -> int:
    return int(ctx["n"]) * 2
