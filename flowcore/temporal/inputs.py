"""The inputs of activities: what one step, undo, or call of `when=` or `verify=` needs from its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from temporalio import workflow

from .._wire import pack_error
from ..plan import Node
from .sizes import brief, size_of
from .wire import Packed, Request, StepInput

if TYPE_CHECKING:
    from .._kernel.run_state import RunState

__all__ = ["Inputs"]

_PARKS: Final = "backoff-timers"
"""the patch since which a long backoff is a timer of the workflow, and not a part of an activity"""
_INPUT: Final = 300_000
"""bytes of values and results that one input carries; the worker fetches the others"""
_TASK: Final = 1_500_000
"""bytes of all inputs that begin in one workflow task; Temporal ends a run whose task has more than 4 MiB"""
_BASE: Final = 1_000
"""bytes of an input without values, results and errors"""


class Inputs:
    """Makes the inputs of one run's activities. `carriers`: those of its steps, by name."""

    any_retry = False
    """whether no command may depend on the number of attempts of a step"""

    def __init__(
        self, run: RunState, request: Request, generation: int, carriers: Mapping[str, dict[str, str]]
    ) -> None:
        self._run, self._request, self._generation, self._carriers = run, request, generation, carriers
        self._task, self._left, self._room = 0, 0, 0

    def input_of(self, node: Node, kind: str, limit: float | None) -> StepInput:
        """The input of an activity."""
        run, undo = self._run, kind == "undo"
        self._begin()
        has_values = self._has_room(run.values)
        error = None if run.error is None or not undo else self._error(run.error)
        visible = [name for name in run.results if undo or run.plan.precedes(name, node)]
        # A step on a thread can fetch a result when it asks for it.
        fetches = kind in {"do", "undo"} and not (node.undo_is_async if undo else node.is_async)
        if fetches and not undo and node.step.executor is not None:
            fetches = False  # but not from another process
        along = {
            name: run.results[name]
            for name in visible
            if (not fetches or name == node.name or name in node.dependencies) and self._has_room(run.results[name])
        }
        sent: StepInput = {
            "workflow": run.workflow.name,
            "step": node.name,
            "kind": kind,
            "run_id": run.run_id,
            "key": run.stored_key,
            "generation": self._generation,
            "namespace": self._request["namespace"],
            "fence": run.fence,
            "values": run.values if has_values else {},
            "results": along,
            "more": [name for name in visible if name not in along],
            "reports": {name: str(report.status) for name, report in run.reports.items() if name not in run.results},
            "deadline": run.deadline,
            "ready_at": workflow.time(),
            "wall": self._request["wall"],
            "grace": self._request["grace"],
            "max_takeovers": self._request["max_takeovers"],
            "timeout": limit,
            "error": error,
            "failed_step": run.failed_step,
            "order": run.undo_order,
            "carrier": dict(run.carrier),
            "carriers": {
                name: self._carriers[name] for name in (*node.dependencies, node.name) if name in self._carriers
            },
        }
        if not has_values:
            sent["fetch_values"] = True
        if not fetches and sent["more"]:
            sent["fetch"], sent["more"] = sent["more"], []
        if kind == "do":
            self._note_attempts(node, sent)
        return sent

    def _note_attempts(self, node: Node, sent: StepInput) -> None:
        """Note what the attempts of the step before this activity left."""
        park_after = self._request.get("park_after")
        if park_after is not None and node.max_attempts > 1 and (self.any_retry or workflow.patched(_PARKS)):
            sent["park_after"] = park_after
        before = self._run.tried.get(node.name)
        if before is not None:
            sent["tried"] = {"errors": list(before.errors), "started": before.started, "failed": before.failed}
            sent["tried"]["times"] = list(before.attempt_times)

    # -- the room in a workflow task -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin another input."""
        task = workflow.info().get_current_history_length()
        if task != self._task:
            self._task, self._left = task, _TASK
        self._left -= _BASE
        self._room = _INPUT

    def _has_room(self, data: Any) -> bool:
        """Whether the input can carry this too."""
        room = min(self._left, self._room)
        if isinstance(data, str) and len(data) > room:
            return False
        size = size_of(data)
        if size > room:
            return False
        self._left, self._room = self._left - size, self._room - size
        return True

    def _error(self, error: BaseException) -> Packed:
        packed = pack_error(error)
        return packed if self._has_room(packed) else brief(packed)
