"""taskflow: tasks in a flow, on its serial engine, or on its threaded one where steps are to run at the same time."""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, override, type-arg, unused-ignore"
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from typing import Any

import futurist
from taskflow import engines, retry, task
from taskflow.patterns import graph_flow

from ..subjects import Run, Subject
from ..work import Step, Work

logging.getLogger("taskflow").setLevel(logging.CRITICAL)


class StepTask(task.Task):
    def __init__(self, step: Step) -> None:
        super().__init__(step.name, provides=step.name, requires=step.after)
        self._step = step

    def execute(self, **results: Any) -> int:
        self._step.fn({})
        return 0

    def revert(self, **results: Any) -> None:
        if self._step.undo is not None:
            self._step.undo({})


class Taskflow(Subject):
    name = "taskflow"
    is_async = False

    def prepare(self, work: Work) -> Run:
        attempts = max(step.attempts for step in work.steps)
        flow = graph_flow.Flow("benchmark", retry=retry.Times(attempts) if attempts > 1 else None)
        flow.add(*map(StepTask, work.steps))
        options: dict[str, Any] = {"engine": "serial"}
        if work.parallel:
            options = {"engine": "parallel", "executor": futurist.ThreadPoolExecutor(32)}
        return lambda: engines.load(flow, **options).run()


SUBJECTS = (Taskflow,)
