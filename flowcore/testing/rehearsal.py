"""A rehearsal runs a workflow once for each of its steps and each fault that can strike there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import NotSerializable, safe_str
from ..run import Run
from ..status import Status
from ..stores.memory import MemoryStore
from ..workflow import Workflow
from .acts import CRASHES, Fault
from .simulator import Simulation, simulate

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
    """why the scene is not clean, in words"""


@dataclass(slots=True)
class Rehearsal:
    """The result of a rehearsal. `str(rehearsal)` is a table of steps by faults."""

    workflow: str
    scenes: list[Scene]

    @property
    def clean(self) -> bool:
        """Whether every scene is clean."""
        return not self.dirty

    @property
    def dirty(self) -> list[Scene]:
        """The scenes that are not clean."""
        return [scene for scene in self.scenes if not scene.clean]

    def assert_clean(self) -> None:
        """Raise AssertionError, with the table and what went wrong, unless every scene is clean."""
        if self.dirty:
            troubles = "\n".join(f"  {scene.step} {scene.fault}: {scene.trouble}" for scene in self.dirty)
            raise AssertionError(
                f"the rehearsal of {self.workflow!r} did not leave the world clean:\n{self}\n{troubles}"
            )

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
    workflow: Workflow[Any],
    values: Mapping[str, Any] | None = None,
    *,
    world: Callable[[], object],
    reset: Callable[[], object] | None = None,
    seed: int = 0,
) -> Rehearsal:
    """Run `workflow` once for each of its steps and each fault, in simulated time, and check after each run whether the
    world is clean: the work as a whole was done, or all of it was undone.

    The faults are those of `Fault`. `world()` is called after each run. It must return False or raise AssertionError if
    the world is not clean; anything else it returns means clean. `reset` is called before each run, except between the
    two of `run twice`, to clear what earlier runs left in the world.

    After a crash another process takes the run over, on a durable store in memory, and ends it. Two faults cannot leave
    the world clean, and there the run is checked instead: after a failed undo, it must have ended as
    compensation_failed and be held; after a crash in a step with `on_crash="hold"`, which requires a decision of an
    operator, it must be held. The last scene, `run twice`, runs the workflow twice with one idempotency key; the second
    run must be a replay. A step that its `when=` skips has no scenes.

        def test_checkout_leaves_no_mess():
            rehearse(checkout, {"order": 7}, world=books.balance, reset=books.clear).assert_clean()

    Raises AssertionError if a fault did not strike at its step, because the rehearsal would then prove nothing; this
    happens, for example, if the workflow fails without any fault. Raises NotSerializable if a step changes the result
    of another step in place, because no takeover would see the change.
    """
    scenes: list[Scene] = []
    plan = workflow.freeze()
    for node in plan.nodes:
        for fault in Fault:
            if fault is Fault.NO_THREAD and (workflow.deadline is None or node.step_timeout is not None):
                continue
            if reset is not None:
                reset()
            if fault is Fault.UNDO_FAILS:
                scene = _undo_fails(workflow, values, node.name, reset, seed)
            else:
                simulated = _simulated(workflow, values, seed=seed, faults={node.name: fault})
                fired = _fired(simulated, node.name, fault)
                scene = _judged(node.name, fault, simulated.run, world) if fired else None
                if scene is not None and fault in CRASHES and simulated.run.held and node.step.on_crash == "hold":
                    scene = Scene(node.name, fault, clean=True, run=simulated.run)
            if scene is not None:
                scenes.append(scene)
    if reset is not None:
        reset()
    scenes.append(_twice(workflow, values, world, seed))
    return Rehearsal(workflow.name, scenes)


def _simulated(workflow: Workflow[Any], values: Mapping[str, Any] | None, **options: Any) -> Simulation:
    simulated = simulate(workflow, values, **options)
    if isinstance(simulated.run.error, NotSerializable):
        raise simulated.run.error
    return simulated


def _fired(simulated: Simulation, step: str, fault: Fault) -> bool:
    """Whether the fault struck at its step. Returns False for a step that was skipped, where no fault can strike.
    Raises AssertionError if the fault did not strike at any other step."""
    if (step, fault) in simulated.fired:
        return True
    if simulated.run.steps[step].status is Status.SKIPPED:
        return False
    raise AssertionError(f"the fault {fault.value!r} never struck at step {step!r}: {simulated.run.explain()}")


def _judged(step: str, fault: str, run: Run, world: Callable[[], object]) -> Scene:
    try:
        clean = world() is not False
        trouble = "" if clean else "world() returned False"
    except AssertionError as error:
        clean, trouble = False, safe_str(error) or "world() raised AssertionError"
    return Scene(step, fault, clean, run, trouble)


def _undo_fails(
    workflow: Workflow[Any],
    values: Mapping[str, Any] | None,
    step: str,
    reset: Callable[[], object] | None,
    seed: int,
) -> Scene | None:
    """Make the undo of `step` fail, in a run in which another step fails once `step` is done. Returns None if `step`
    has no undo, or if in no run another step failed after it."""
    if workflow.freeze().by_name[step].compensation is None:
        return None
    for culprit in _after(workflow, step):
        if reset is not None:
            reset()
        simulated = _simulated(workflow, values, seed=seed, faults={step: Fault.UNDO_FAILS, culprit: Fault.FAIL_BEFORE})
        if (step, Fault.UNDO_FAILS) in simulated.fired:
            held = simulated.run.held and simulated.run.status is Status.COMPENSATION_FAILED
            return Scene(step, Fault.UNDO_FAILS, held, simulated.run, "" if held else "the run is not held")
    return None


def _after(workflow: Workflow[Any], step: str) -> list[str]:
    """The other steps, in the order in which to let them fail once `step` is done: its dependants first, then all
    others, the last defined first."""
    nodes = workflow.freeze().nodes
    found = {node.index for node in nodes if node.name == step}
    todo = list(found)
    while todo:
        for index in nodes[todo.pop()].successors:
            if index not in found:
                found.add(index)
                todo.append(index)
    dependants = [node.name for node in reversed(nodes) if node.index in found and node.name != step]
    return dependants + [node.name for node in reversed(nodes) if node.index not in found]


def _twice(workflow: Workflow[Any], values: Mapping[str, Any] | None, world: Callable[[], object], seed: int) -> Scene:
    store = MemoryStore()
    first = _simulated(workflow, values, seed=seed, store=store, idempotency_key="rehearsal")
    second = _simulated(workflow, values, seed=seed + 1, store=store, idempotency_key="rehearsal")
    scene = _judged("(all)", TWICE, second.run, world)
    if first.run.status is Status.SUCCESS and not second.run.replayed:
        return Scene("(all)", TWICE, clean=False, run=second.run, trouble="the second run was not a replay")
    return scene
