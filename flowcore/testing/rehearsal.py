"""A rehearsal: the workflow run once for each step and each thing that can go wrong there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import said
from ..run import Run
from ..status import Status
from ..stores.memory import MemoryStore
from ..workflow import Workflow
from .simulator import Fault, Simulation, simulate

__all__ = ["Rehearsal", "Scene", "rehearse"]

TWICE: Final = "run twice"
_MARKS: Final = {True: "ok", False: "DIRTY", None: "-"}


@dataclass(slots=True)
class Scene:
    """One run of a rehearsal: `fault` at `step`, and whether the world was clean afterwards."""

    step: str
    fault: str
    clean: bool
    run: Run = field(repr=False)
    trouble: str = ""
    """what was not clean, in words"""


@dataclass(slots=True)
class Rehearsal:
    """What a rehearsal found. `str(rehearsal)` is a table of steps by faults; `clean` says whether all went well."""

    workflow: str
    scenes: list[Scene]

    @property
    def clean(self) -> bool:
        """Whether the world was clean after every scene."""
        return not self.dirty

    @property
    def dirty(self) -> list[Scene]:
        """The scenes after which it was not."""
        return [scene for scene in self.scenes if not scene.clean]

    def assert_clean(self) -> None:
        """Raise AssertionError with the table and the troubles, unless the world was clean after every scene."""
        if self.dirty:
            troubles = "\n".join(f"  {scene.step} {scene.fault}: {scene.trouble}" for scene in self.dirty)
            raise AssertionError(f"the rehearsal of {self.workflow!r} left the world dirty:\n{self}\n{troubles}")

    def __str__(self) -> str:
        steps = list(dict.fromkeys(scene.step for scene in self.scenes))
        faults = list(dict.fromkeys(scene.fault for scene in self.scenes))
        found = {(scene.step, scene.fault): scene.clean for scene in self.scenes}
        rows = [["", *faults], *([step, *(_MARKS[found.get((step, fault))] for fault in faults)] for step in steps)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def rehearse(
    workflow: Workflow,
    values: Mapping[str, Any] | None = None,
    *,
    world: Callable[[], object],
    reset: Callable[[], object] | None = None,
    seed: int = 0,
) -> Rehearsal:
    """Run `workflow` once for each of its steps and each fault, in simulated time, and after each ask `world()` whether
    the slate is clean: everything that was done is done as a whole, or undone.

    `world` answers False, or raises AssertionError, where it is not. `reset` is called before each run, for a world that
    does not stay clean once it is dirty. The faults are those of `Fault`; an undo that fails
    cannot leave the world clean, so there the run must end as compensation_failed and held. `run twice` runs the whole
    workflow twice with one idempotency key, and the second must be a replay.

    Raises AssertionError where a fault did not strike at its step: then the rehearsal would prove nothing.
    """
    scenes: list[Scene] = []
    plan = workflow.freeze()
    for node in plan.nodes:
        for fault in Fault:
            if reset is not None:
                reset()
            if fault is Fault.UNDO_FAILS:
                scene = _undo_fails(workflow, values, node.name, seed)
            else:
                simulated = simulate(workflow, values, seed=seed, faults={node.name: fault})
                _fired(simulated, node.name, fault)
                scene = _judged(node.name, fault, simulated.run, world)
            if scene is not None:
                scenes.append(scene)
    if reset is not None:
        reset()
    scenes.append(_twice(workflow, values, world, seed))
    return Rehearsal(workflow.name, scenes)


def _fired(simulated: Simulation, step: str, fault: Fault) -> None:
    report = simulated.run.steps[step]
    if report.status is not Status.SKIPPED and (step, fault) not in simulated.fired:
        raise AssertionError(f"the fault {fault.value!r} never struck at step {step!r}: {simulated.run.explain()}")


def _judged(step: str, fault: str, run: Run, world: Callable[[], object]) -> Scene:
    try:
        clean = world() is not False
        trouble = "" if clean else "world() said no"
    except AssertionError as error:
        clean, trouble = False, said(error) or "world() raised AssertionError"
    return Scene(step, fault, clean, run, trouble)


def _undo_fails(workflow: Workflow, values: Mapping[str, Any] | None, step: str, seed: int) -> Scene | None:
    """Fail the undo of `step`: something after it must fail first, so that it is undone at all."""
    plan = workflow.freeze()
    node = plan.by_name[step]
    last = next((other.name for other in reversed(plan.nodes) if other is not node and not other.successors), None)
    if node.compensation is None or last is None:
        return None
    simulated = simulate(workflow, values, seed=seed, faults={step: Fault.UNDO_FAILS, last: Fault.FAIL_BEFORE})
    if (step, Fault.UNDO_FAILS) not in simulated.fired:
        return None  # the other step failed before this one had done anything
    held = simulated.run.held and simulated.run.status is Status.COMPENSATION_FAILED
    return Scene(step, Fault.UNDO_FAILS, held, simulated.run, "" if held else "the run is not held")


def _twice(workflow: Workflow, values: Mapping[str, Any] | None, world: Callable[[], object], seed: int) -> Scene:
    store = MemoryStore()
    first = simulate(workflow, values, seed=seed, store=store, idempotency_key="rehearsal")
    second = simulate(workflow, values, seed=seed + 1, store=store, idempotency_key="rehearsal")
    scene = _judged("(all)", TWICE, second.run, world)
    if first.run.status is Status.SUCCESS and not second.run.replayed:
        return Scene("(all)", TWICE, clean=False, run=second.run, trouble="the second run was no replay")
    return scene
