"""Burr: a state machine, one action at a time; an application object is one run. No retries, no undoing."""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, override, type-arg, unused-ignore"
# pyright: reportMissingImports=false

from __future__ import annotations

from itertools import pairwise
from typing import Any

from burr import telemetry
from burr.core import Action, ApplicationBuilder, GraphBuilder, State

from ..subjects import Run, Subject
from ..work import Fn, Work

telemetry.disable_telemetry()


class SyncAction(Action):
    def __init__(self, fn: Fn) -> None:
        super().__init__()
        self._fn = fn

    @property
    def reads(self) -> list[str]:
        return []

    @property
    def writes(self) -> list[str]:
        return []

    def run(self, state: State, **run_kwargs: Any) -> Any:
        self._fn({})
        return {}

    def update(self, result: dict[str, Any], state: State) -> State:
        return state


class AsyncAction(SyncAction):
    async def run(self, state: State, **run_kwargs: Any) -> Any:
        await self._fn({})
        return {}

    def is_async(self) -> bool:
        return True


class Burr(Subject):
    name = "Burr"
    is_async = False
    cannot = frozenset({"joins", "parallel", "retry", "undo"})

    def prepare(self, work: Work) -> Run:
        kind = AsyncAction if work.is_async else SyncAction
        names = [step.name for step in work.steps]
        graph = (
            GraphBuilder()
            .with_actions(**{step.name: kind(step.fn) for step in work.steps})
            .with_transitions(*pairwise(names))
            .build()
        )

        def application() -> Any:
            return ApplicationBuilder().with_graph(graph).with_entrypoint(names[0]).with_state(State()).build()

        if work.is_async:
            return lambda: application().arun(halt_after=names[-1:])
        return lambda: application().run(halt_after=names[-1:])


class BurrAsync(Burr):
    name = "Burr, async"
    is_async = True


SUBJECTS = (Burr, BurrAsync)
