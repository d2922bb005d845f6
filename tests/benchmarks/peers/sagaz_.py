"""sagaz: async sagas, layer by layer. It always waits between retries, so they are not compared."""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, override, type-arg, unused-ignore"
# pyright: reportMissingImports=false

from __future__ import annotations

import logging

from sagaz import Saga

from ..subjects import Run, Subject
from ..work import Work

logging.getLogger("sagaz").setLevel(logging.CRITICAL)  # it logs each step


class Sagaz(Subject):
    name = "sagaz"
    is_async = True
    cannot = frozenset({"retry"})

    def prepare(self, work: Work) -> Run:
        saga = Saga(name="benchmark")
        for step in work.steps:
            saga.add_step(step.name, step.fn, step.undo, depends_on=list(step.after), max_retries=1)
        return lambda: saga.run({})


SUBJECTS = (Sagaz,)
