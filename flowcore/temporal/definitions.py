"""The workflows that the workers of this process run on Temporal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from ..errors import DefinitionError, safe_repr
from ..plan import Node, Plan
from ..step import NoDefault
from ..stores.encoding import STEP, Encoding
from ..workflow import Workflow

__all__ = ["Definition", "activity_name", "check_supported", "definition_of", "register"]


class Definition(NamedTuple):
    """A workflow, and the encoding of the worker that runs it."""

    workflow: Workflow[Any]
    encoding: Encoding

    def plan_for(self, run_id: str) -> Plan:
        """The plan for one run. Its defaults of waits are the codec's texts, because they become results, and a run on
        Temporal handles results as texts. Raises NotSerializable."""
        return _with_texts(self.workflow.freeze(), self.encoding, run_id)


_MOST_STEPS: Final = 5_000
"""steps of a workflow: Temporal ends an execution with more than 51,200 events, and a step with its undo takes about
ten"""
_LONGEST_NAME: Final = 1_000
"""bytes of a name in Temporal"""
_definitions: Final[dict[str, dict[str, Definition]]] = {}
"""by task queue, then by name; they are global because Temporal itself makes the objects that run them, from their
history alone"""


def check_supported(workflow: Workflow[Any]) -> None:
    """Raise DefinitionError for a workflow that Temporal cannot carry."""
    plan = workflow.plan()
    if len(plan.nodes) > _MOST_STEPS:
        raise DefinitionError(
            f"workflow {safe_repr(workflow.name)} has {len(plan.nodes):,} steps, and a run on Temporal can have "
            f"{_MOST_STEPS:,}. Split it, or run it on AsyncEngine."
        )
    _check_name(workflow.name, f"the name of workflow {safe_repr(workflow.name)} is")
    for node in plan.nodes:
        for kind in _activity_kinds(node):
            both = f"the names of workflow {safe_repr(workflow.name)} and step {safe_repr(node.name)} are together"
            _check_name(activity_name(workflow.name, node, kind), both)


def activity_name(workflow: str, node: Node, kind: str) -> str:
    """The name of the activity that performs a step ("do") or its undo, or calls its `when=` or `verify=`."""
    return f"{workflow}.{node.name}" + ("" if kind == "do" else f".{kind}")


def _activity_kinds(node: Node) -> Iterator[str]:
    """The kinds of activities that a step may have."""
    yield "do"
    if node.compensation is not None:
        yield "undo"
    if node.when is not None:
        yield "when"
    if node.step.verify is not None:
        yield "verify"


def _check_name(name: str, what: str) -> None:
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        raise DefinitionError(
            f"{what} too long for Temporal, which allows {_LONGEST_NAME:,} bytes. Choose a shorter one."
        )


def register(task_queue: str, workflows: Iterable[Workflow[Any]], encoding: Encoding) -> None:
    """Register workflows with the workers of this process that poll `task_queue`. Before their histories can be
    replayed, they must be registered too. Raises DefinitionError if two of them have the same name, or one is not a
    workflow, and NotSerializable for a default of a wait that cannot be stored."""
    known: dict[str, Definition] = {}
    for workflow in workflows:
        if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"workflows= must be workflows, not {safe_repr(workflow)}.")
        definition = Definition(workflow, encoding)
        definition.plan_for("")
        if known.setdefault(workflow.name, definition).workflow is not workflow:
            raise DefinitionError(f"workflows= has two workflows with the name {safe_repr(workflow.name)}.")
    _definitions.setdefault(task_queue, {}).update(known)


def definition_of(task_queue: str, name: str) -> Definition:
    """The definition with this name. Raises DefinitionError if no worker of this process has it."""
    known = _definitions.get(task_queue)
    if known is None:  # Temporal's Replayer has a task queue of its own
        known = {name: definition for several in _definitions.values() for name, definition in several.items()}
    definition = known.get(name)
    if definition is None:
        raise DefinitionError(f"this worker has no workflow {safe_repr(name)}. Name it in temporal_worker(workflows=).")
    return definition


def _with_texts(plan: Plan, encoding: Encoding, run_id: str) -> Plan:
    if not plan.waits:
        return plan
    twin = copy.copy(plan)
    nodes = [copy.copy(node) for node in plan.nodes]
    for node in nodes:
        node.follows = None if node.follows is None else nodes[node.follows.index]
        if node.wait is not None and (node.wait.sleeps or not isinstance(node.wait.default, NoDefault)):
            text = encoding.dumped(node.wait.default, Any, "the default of wait", node.name, run_id, STEP + node.name)
            node.wait = replace(node.wait, default=text)
    twin.nodes, twin.by_name = tuple(nodes), {node.name: node for node in nodes}
    return twin
