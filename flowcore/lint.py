"""What a careful colleague would say of a definition: `Workflow.check()`. Reads the plan, decides nothing."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import safe_repr
from .plan import Node, Plan

__all__ = ["advice"]


def advice(plan: Plan, deadline: float | None) -> list[str]:
    """One sentence for each thing worth a second look, naming the step and the remedy; in definition order.

    `deadline`: seconds for the whole run, or None.
    """
    after_pivot = _after(plan, [node for node in plan.nodes if node.step.pivot])
    return [
        sentence
        for node in plan.nodes
        for sentence in (
            *_no_undo(plan, node, after_pivot),
            *_sync_with_a_timeout(node),
            *_no_retries_past_the_pivot(node, after_pivot),
            *_worst_case(node, deadline),
        )
    ]


def _after(plan: Plan, nodes: list[Node]) -> set[int]:
    """All that depends on `nodes`, by index, directly or not."""
    found: set[int] = set()
    waiting = [index for node in nodes for index in node.successors]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(plan.nodes[index].successors)
    return found


def _no_undo(plan: Plan, node: Node, after_pivot: set[int]) -> Iterator[str]:
    if node.compensation is None and node.successors and not node.step.pivot and node.index not in after_pivot:
        after = plan.nodes[node.successors[0]].name
        yield (
            f"step {safe_repr(node.name)} has no undo, and {safe_repr(after)} after it can fail: if it has an effect, "
            f"say how to undo it with @{node.name}.compensate."
        )


def _sync_with_a_timeout(node: Node) -> Iterator[str]:
    limit = node.timeout if node.timeout is not None else node.step_timeout
    if limit is not None and not node.is_async:
        yield (
            f"step {safe_repr(node.name)} is sync and has a timeout of {limit:g} s: a thread cannot be stopped, it goes on "
            f"in the background; look at ctx.cancelled in it now and then, or make it async."
        )


def _no_retries_past_the_pivot(node: Node, after_pivot: set[int]) -> Iterator[str]:
    if node.index in after_pivot and node.retry is None:
        yield (
            f"step {safe_repr(node.name)} comes after the pivot and is not retried: if it fails, the run stays incomplete "
            f"until somebody calls it again; give it retry=."
        )


def _worst_case(node: Node, deadline: float | None) -> Iterator[str]:
    """Attempts and waits that cannot all fit into the limits around them."""
    retry = node.retry
    waits = sum(retry.backoff.bound(n) for n in range(1, retry.attempts)) if retry and retry.backoff else 0.0
    takes = waits + (node.timeout or 0.0) * node.max_attempts
    for limit, name, remedy in (
        (node.step_timeout, "its step_timeout", "raise that, or make fewer attempts"),
        (deadline, "the workflow's deadline", "raise that, or shorten timeout= or retry="),
    ):
        if limit is not None and takes > limit:
            yield (
                f"step {safe_repr(node.name)} may take {takes:g} s at worst ({node.max_attempts} attempts and the waits "
                f"between them), more than {name} of {limit:g} s: {remedy}."
            )
