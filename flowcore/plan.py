"""A workflow compiled for running: integer in-degrees and successor lists, made once and shared by all its runs.

graphlib of the standard library checks the graph for cycles. Runs use the lists instead, because graphlib would cost
more than all the rest of a small run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ._in_executor import InExecutor
from .errors import DependencyCycle, UnknownDependency, safe_repr
from .functions import function_name, is_async, return_annotation

if TYPE_CHECKING:
    from .step import Compensation, Step

__all__ = ["Node", "Plan"]

_UNTYPED: Final[Mapping[str, Any]] = MappingProxyType({})
_CYCLE_SHOWN: Final = 20  # names that a message lists


class Node:
    """A step in the plan, with all that a run needs to know of it computed beforehand. Immutable once made."""

    __slots__ = (
        "compensation",
        "dependencies",
        "direct",
        "expected",
        "fn",
        "follows",
        "function",
        "index",
        "inline",
        "is_async",
        "max_attempts",
        "name",
        "plain",
        "predecessors",
        "retry",
        "step",
        "step_timeout",
        "successors",
        "timeout",
        "undo_attempted",
        "undo_is_async",
        "verify_is_async",
        "wait",
        "when",
    )

    def __init__(self, index: int, step: Step[Any], predecessors: tuple[int, ...], undo: str) -> None:
        self.index = index
        self.step = step
        self.name = step.name
        self.fn: Callable[..., Any] = step.fn if step.executor is None else InExecutor(step, step.executor)
        self.function = function_name(step.fn)
        self.is_async = is_async(step.fn)
        self.predecessors = predecessors
        self.successors: tuple[int, ...] = ()
        self.dependencies: tuple[str, ...] = ()
        self.direct: frozenset[str] = frozenset(step.depends_on)
        self.retry = step.retry
        self.max_attempts = 1 if step.retry is None else step.retry.attempts
        self.timeout = step.timeout
        self.step_timeout = step.step_timeout
        self.when = step.when
        self.wait = step.wait
        self.expected = step.expected
        self.compensation: Compensation | None = step.compensation
        self.undo_is_async = step.compensation is not None and is_async(step.compensation.fn)
        self.verify_is_async = step.verify is not None and is_async(step.verify)
        # The first attempt of a plain step needs no clock and no check before it.
        self.plain = (
            step.when is None
            and step.wait is None
            and step.timeout is None
            and step.step_timeout is None
            and not step.pivot
            and step.executor is None
            and (step.retry is None or step.retry.max_elapsed is None)
        )
        # Whether the step can run inline: the first item is for threads, the second for asyncio.
        self.inline = (self.plain and not self.is_async, self.plain and self.is_async)
        # The only successor, if it has no other predecessor: its in-degree need not be counted down.
        self.follows: Node | None = None
        self.undo_attempted = (step.undo or undo) == "attempted"


class Plan:
    """The compiled workflow: its nodes in definition order, and all that is the same for every run. Thread-safe."""

    __slots__ = (
        *("_ancestors", "_graph", "_inputs", "_types", "by_name", "conditional", "has_async", "indegrees", "nodes"),
        *("pivoted", "ready", "size", "waits"),
    )

    def __init__(self, steps: Mapping[str, Step[Any]], undo: str, inputs: Mapping[str, Any] = _UNTYPED) -> None:
        order = {name: index for index, name in enumerate(steps)}
        self.nodes: tuple[Node, ...] = tuple(
            Node(order[name], step, _predecessors(step, order), undo) for name, step in steps.items()
        )
        self.size = len(self.nodes)
        self.by_name = {node.name: node for node in self.nodes}
        successors: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for index in node.predecessors:
                successors[index].append(node.index)
        for node in self.nodes:
            node.successors = tuple(successors[node.index])
            if len(node.successors) == 1 and len(self.nodes[node.successors[0]].predecessors) == 1:
                node.follows = self.nodes[node.successors[0]]
            node.dependencies = tuple(self.nodes[index].name for index in node.predecessors)
        _refuse_cycle(self.nodes)
        self.indegrees = [len(node.predecessors) for node in self.nodes]
        self.ready = tuple(node.index for node in self.nodes if not node.predecessors)
        self.has_async = next(
            (node.name for node in self.nodes if node.is_async or node.undo_is_async or node.verify_is_async), None
        )
        self.conditional = any(node.when is not None for node in self.nodes)
        self.waits = any(node.wait is not None for node in self.nodes)
        self.pivoted = any(node.step.pivot for node in self.nodes)
        self._graph: str | None = None
        self._inputs = inputs
        self._types: Mapping[str, Any] | None = None
        self._ancestors: dict[int, int] = {}  # node -> bit set of its ancestors, filled on demand

    @property
    def types(self) -> Mapping[str, Any]:
        """The annotations of results ("s:" + step) and of the fields of the input ("w:" + key), for codecs."""
        if self._types is None:
            found = ((f"s:{node.name}", return_annotation(node.fn)) for node in self.nodes)
            types = {field: annotation for field, annotation in found if annotation is not Any}
            self._types = types | {f"w:{name}": annotation for name, annotation in self._inputs.items()}
        return self._types

    def precedes(self, name: str, node: Node) -> bool:
        """Whether `node` depends on the step `name`, directly or not."""
        known = self._ancestors.get(node.index)
        if known is None:
            known = self._ancestors[node.index] = self._bits_of_ancestors(node)
        return bool(known >> self.by_name[name].index & 1)

    def _bits_of_ancestors(self, node: Node) -> int:
        seen: set[int] = set()
        bits = 0
        waiting = list(node.predecessors)
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            known = self._ancestors.get(index)
            if known is None:
                waiting.extend(self.nodes[index].predecessors)
            else:  # its ancestors were computed before, so they need no second walk
                bits |= known
        mask = bytearray(len(self.nodes) // 8 + 1)
        for index in seen:
            mask[index >> 3] |= 1 << (index & 7)
        return bits | int.from_bytes(mask, "little")

    @property
    def graph(self) -> str:
        """The definition as a store records it, in canonical JSON.

        It lists the steps in definition order. Each entry has the name, the sorted dependencies, whether there is an
        undo, whether it is a pivot, and "wait" or "sleep" for a step without a function. Code, retries and timeouts are
        not part of it.
        """
        if self._graph is None:
            steps = [
                [
                    *(node.name, sorted(node.dependencies), int(node.compensation is not None), int(node.step.pivot)),
                    *(() if node.wait is None else ("sleep" if node.wait.sleeps else "wait",)),
                ]
                for node in self.nodes
            ]
            self._graph = _as_json(steps)
        return self._graph

    def contains(self, recorded: str) -> str | None:
        """Return why this definition cannot resume a run that was recorded with the graph `recorded`; None if it can.

        The definition must have every recorded step, with the same dependencies. Steps may be reordered or added, and
        undos may be added.
        """
        if recorded == self.graph:
            return None
        steps = _recorded_steps(recorded)
        if steps is None:
            return "its recorded step graph cannot be read"
        for name, dependencies, undo, pivot, waits in steps:
            node = self.by_name.get(name)
            if node is None:
                return f"step {safe_repr(name)} is missing"
            if sorted(node.dependencies) != sorted(dependencies):
                return f"step {safe_repr(name)} has other dependencies"
            if undo and node.compensation is None:
                return f"step {safe_repr(name)} has lost its undo"
            if bool(pivot) != node.step.pivot:
                return f"step {safe_repr(name)} {'is no longer a pivot' if pivot else 'has become a pivot'}"
            if waits != (None if node.wait is None else "sleep" if node.wait.sleeps else "wait"):
                return f"step {safe_repr(name)} was recorded as a {waits or 'function'}"
        return None

    def layers(self) -> list[list[Step[Any]]]:
        """Return the steps layer by layer. Those of one layer, in definition order, could run at the same time."""
        depth: list[int] = [0] * len(self.nodes)
        for index in _sorted(self.nodes).static_order():
            depth[index] = max((depth[before] + 1 for before in self.nodes[index].predecessors), default=0)
        layers: list[list[Step[Any]]] = [[] for _ in range(max(depth, default=-1) + 1)]
        for node in self.nodes:
            layers[depth[node.index]].append(node.step)
        return layers


def _predecessors(step: Step[Any], order: Mapping[str, int]) -> tuple[int, ...]:
    indices: dict[int, None] = {}
    for name in step.depends_on:
        if name not in order:
            raise UnknownDependency(
                f"step {safe_repr(step.name)} depends on {safe_repr(name)}, which is not a step of this workflow; "
                f"it has {_some(list(order))}."
            )
        indices[order[name]] = None
    return tuple(indices)


def _some(names: list[str]) -> str:
    few = ", ".join(map(safe_repr, names[:_CYCLE_SHOWN]))
    return few + (f" and {len(names) - _CYCLE_SHOWN} more" if len(names) > _CYCLE_SHOWN else "")


def _sorted(nodes: tuple[Node, ...]) -> TopologicalSorter[int]:
    return TopologicalSorter({node.index: node.predecessors for node in nodes})


def _refuse_cycle(nodes: tuple[Node, ...]) -> None:
    try:
        _sorted(nodes).prepare()
    except CycleError as error:
        # graphlib lists a cycle with each node before the one that depends on it, the first repeated at the end.
        cycle: list[int] = error.args[1]
        path = [safe_repr(nodes[index].name) for index in reversed(cycle)]
        if len(path) > _CYCLE_SHOWN:
            path = [*path[: _CYCLE_SHOWN - 2], f"… {len(path) - _CYCLE_SHOWN + 1} more …", path[-1]]
        raise DependencyCycle(f"Dependency cycle: {' -> '.join(path)}.") from None


def _as_json(steps: list[list[Any]]) -> str:
    import json  # only for runs with a key or a durable store

    return json.dumps(steps, separators=(",", ":"))


def _recorded_steps(text: str) -> list[tuple[str, list[str], int, int, str | None]] | None:
    """Return the steps of a recorded graph, or None if the text is not a graph."""
    import json

    try:
        steps: Any = json.loads(text)
        return [
            (str(name), [str(one) for one in needs], int(undo), int(pivot), str(more[0]) if more else None)
            for name, needs, undo, pivot, *more in steps
        ]
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
