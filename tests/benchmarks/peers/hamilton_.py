"""Hamilton: functions whose parameters name what they depend on. Sync it runs one step at a time. No retries, no undoing."""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, override, type-arg, unused-ignore"
# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import sys
from types import ModuleType
from typing import Any

from hamilton import async_driver, base, driver

from ..subjects import Run, Subject
from ..work import Work

_numbers = itertools.count()


def module(work: Work) -> ModuleType:
    """A module with a function for each step, as Hamilton reads them."""
    made = ModuleType(f"hamilton_benchmark_{next(_numbers)}")
    sys.modules[made.__name__] = made
    vars(made)["_fns"] = {step.name: step.fn for step in work.steps}
    prefix, call = ("async ", "await ") if work.is_async else ("", "")
    for step in work.steps:
        parameters = ", ".join(f"{name}: int" for name in step.after)
        source = f"{prefix}def {step.name}({parameters}) -> int:\n {call}_fns[{step.name!r}]({{}})\n return 0"
        exec(source, vars(made))
    return made


def ends(work: Work) -> list[str]:
    """The steps that nothing depends on: what Hamilton is asked for."""
    needed = {name for step in work.steps for name in step.after}
    return [step.name for step in work.steps if step.name not in needed]


class Hamilton(Subject):
    name = "Hamilton"
    is_async = False
    cannot = frozenset({"parallel", "retry", "undo"})

    def prepare(self, work: Work) -> Run:
        made = driver.Builder().with_modules(module(work)).with_adapters(base.DictResult()).build()
        wanted = ends(work)
        return lambda: made.execute(wanted)


class HamiltonAsync(Subject):
    name = "Hamilton, async"
    is_async = True
    cannot = frozenset({"retry", "undo"})

    def prepare(self, work: Work) -> Run:
        made = async_driver.Builder().with_modules(module(work)).build_without_init()
        wanted = ends(work)
        ready = False

        async def run() -> Any:
            nonlocal ready
            if not ready:
                await made.ainit()
                ready = True
            return await made.execute(wanted)

        return run


SUBJECTS = (Hamilton, HamiltonAsync)
