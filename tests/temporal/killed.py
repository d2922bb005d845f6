"""Workflows whose steps wait until a file lets them go on, so that their worker can be killed in them."""

import os
import time
from pathlib import Path
from typing import Any

from flowcore import Backoff, Landed, Retry, Workflow


def note(ctx: Any, what: str) -> None:
    """Write down that something of a run happened, and in which process."""
    with (Path(ctx["folder"]) / f"{ctx['name']}.log").open("a") as log:
        log.write(f"{what} {os.getpid()} {ctx.fence} {ctx.step_key}\n")


def wait(ctx: Any) -> None:
    while not (Path(ctx["folder"]) / "go").exists():
        time.sleep(0.005)


def stuck(ctx: Any) -> str:
    note(ctx, "stuck")
    wait(ctx)
    return "done"


def fails(ctx: Any) -> None:
    raise ValueError("this run is undone")


def workflow(name: str, **options: Any) -> Workflow:
    """A step with an undo, then one in which the worker is killed."""
    wf = Workflow(name)
    first = wf.add_step("first", lambda ctx: note(ctx, "first"))
    first.compensate(lambda ctx: note(ctx, "undo first"))
    step = wf.add_step("stuck", stuck, depends_on=first, **options)
    step.compensate(lambda ctx: note(ctx, "undo stuck"))
    return wf


def unclear() -> Workflow:
    """Its verify= cannot reach the partner until a file is there."""

    def verify(ctx: Any) -> Landed[str]:
        note(ctx, "asked")
        if not (Path(ctx["folder"]) / "reachable").exists():
            raise OSError("no line")
        return Landed("landed")

    return workflow("unclear", verify=verify)


def in_undo() -> Workflow:
    wf = Workflow("in undo")
    step = wf.add_step("step", lambda ctx: note(ctx, "step"))
    step.compensate(stuck)
    wf.add_step("fails", fails, depends_on=step)
    return wf


def in_backoff() -> Workflow:
    wf = Workflow("in backoff")

    @wf.step(retry=Retry(2, Backoff.fixed(5)))
    def step(ctx: Any) -> None:
        note(ctx, "stuck")
        raise ValueError(f"attempt {ctx.attempt}")

    return wf


def after_backoff() -> Workflow:
    """Its worker is killed in the second attempt."""
    wf = Workflow("after backoff")

    @wf.step(retry=Retry(3, Backoff.fixed(0.3)))
    def step(ctx: Any) -> None:
        if ctx.attempt == 1:
            note(ctx, "fails")
            raise ValueError(f"attempt {ctx.attempt}")
        stuck(ctx)

    return wf


def waits() -> Workflow:
    wf = Workflow("waits")
    wf.wait("value")
    return wf


def held() -> Workflow:
    """Its undo fails until a file lets it succeed, so that its key is held."""
    wf = Workflow("held")

    def undo(ctx: Any) -> None:
        if not (Path(ctx["folder"]) / "go").exists():
            raise OSError("no line")

    step = wf.add_step("step", lambda ctx: 1)
    step.compensate(retry=1)(undo)
    wf.add_step("fails", fails, depends_on=step)
    return wf


def workflows() -> list[Workflow]:
    return [
        workflow("plain"),
        workflow("verified", verify=lambda ctx: Landed("landed")),
        workflow("undone", on_crash="undo"),
        workflow("held", on_crash="hold"),
        in_undo(),
        in_backoff(),
        after_backoff(),
        unclear(),
    ]
