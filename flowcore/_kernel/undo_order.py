"""The order of a parallel undo: a step may be undone once all steps that depend on it are undone."""

from __future__ import annotations

from collections.abc import Iterable

from ..plan import Node, Plan

__all__ = ["UndoOrder"]


class UndoOrder:
    """Determines which of the steps to undo are ready. The caller holds the run's lock."""

    __slots__ = ("_due", "_left", "_nodes")

    def __init__(self, plan: Plan, to_undo: Iterable[Node]) -> None:
        self._nodes = plan.nodes
        self._due = {node.index for node in to_undo}
        self._left = [len(node.successors) for node in plan.nodes]  # how many dependents of each node are not undone

    def first(self) -> list[int]:
        """Return the indices of the nodes that may be undone first."""
        return self._ready([node.index for node in reversed(self._nodes) if not node.successors])

    def after(self, index: int) -> list[int]:
        """Return the indices of the nodes that may be undone now that the node at `index` is undone."""
        return self._ready(self._unblocked_by(index))

    def _ready(self, indices: list[int]) -> list[int]:
        # A step that is not undone blocks none: continue with its dependencies. They are added to the list that is being
        # walked, because chains can be long.
        ready: list[int] = []
        for index in indices:
            if index in self._due:
                ready.append(index)
            else:
                indices.extend(self._unblocked_by(index))
        return ready

    def _unblocked_by(self, index: int) -> list[int]:
        unblocked: list[int] = []
        for before in self._nodes[index].predecessors:
            self._left[before] -= 1
            if not self._left[before]:
                unblocked.append(before)
        return unblocked
