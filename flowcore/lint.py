"""Advice on a definition, as a careful colleague would give it, for `Workflow.check()`. It only reads the plan."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, Final, get_args, get_origin

from .errors import safe_repr
from .functions import return_annotation
from .plan import Node, Plan

__all__ = ["advice"]

_LISTED: Final = 5  # steps that one sentence names
_STORABLE: Final = frozenset(
    (
        *("builtins.str", "builtins.int", "builtins.float", "builtins.bool", "builtins.NoneType", "builtins.bytes"),
        *("builtins.list", "builtins.dict", "builtins.tuple", "builtins.set", "builtins.frozenset", "builtins.object"),
        *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "decimal.Decimal", "uuid.UUID"),
    )
)
"""classes whose values the default codec keeps. `object` is one of them, because it says nothing about the values."""


_LIVE: Final = (Generator, AsyncGenerator, Iterator, AsyncIterator, Callable)
"""annotations of objects that exist in one process only"""


def advice(plan: Plan, deadline: float | None, undo: str) -> list[str]:
    """Return one sentence for each remedy, which names the steps that need it, in definition order.

    `deadline`: seconds for the whole run, or None. `undo`: the workflow's `undo=`.
    """
    after_pivot = _after(plan, [node for node in plan.nodes if node.step.pivot])
    return [
        *(_no_undo(plan, after_pivot) if undo != "never" else ()),
        *_sync_with_a_timeout(plan),
        *_no_retries_past_the_pivot(plan, after_pivot),
        *_cannot_be_stored(plan),
        *_wait_for_ever(plan, deadline),
        *(sentence for node in plan.nodes for sentence in _worst_case(node, deadline)),
    ]


def _after(plan: Plan, nodes: list[Node]) -> set[int]:
    """Return the indices of all steps that depend on `nodes`, directly or not."""
    found: set[int] = set()
    waiting = [index for node in nodes for index in node.successors]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(plan.nodes[index].successors)
    return found


def _named(nodes: list[Node]) -> str:
    """Return a phrase with the names of several steps."""
    names = ", ".join(safe_repr(node.name) for node in nodes[:_LISTED])
    return f"steps {names}" + (f" and {len(nodes) - _LISTED} more" if len(nodes) > _LISTED else "")


def _no_undo(plan: Plan, after_pivot: set[int]) -> Iterator[str]:
    nodes = [
        node
        for node in plan.nodes
        if node.compensation is None
        and node.step.effect
        and node.successors
        and not node.step.pivot
        and node.index not in after_pivot
    ]
    if len(nodes) == 1:
        (node,) = nodes
        after = plan.nodes[node.successors[0]].name
        yield (
            f"step {safe_repr(node.name)} has no undo, and {safe_repr(after)} after it can fail: if it has an effect, "
            f"say how to undo it with @{node.name}.compensate, else mark it with effect=False."
        )
    elif nodes:
        yield (
            f"{_named(nodes)} have no undo, and steps after them can fail: say how to undo those that have an effect "
            "with @step.compensate, and mark the others with effect=False; or switch undoing off with "
            "Workflow(undo='never')."
        )


def _sync_with_a_timeout(plan: Plan) -> Iterator[str]:
    nodes = [
        node for node in plan.nodes if (node.timeout is not None or node.step_timeout is not None) and not node.is_async
    ]
    remedy = (
        "a thread cannot be stopped, so it continues in the background. Check ctx.cancelled in it, or make it async."
    )
    if len(nodes) == 1:
        (node,) = nodes
        limit = node.timeout if node.timeout is not None else node.step_timeout
        yield f"step {safe_repr(node.name)} is sync and has a timeout of {limit:g} s: {remedy}"
    elif nodes:
        yield f"{_named(nodes)} are sync and have timeouts: {remedy}"


def _no_retries_past_the_pivot(plan: Plan, after_pivot: set[int]) -> Iterator[str]:
    nodes = [node for node in plan.nodes if node.index in after_pivot and node.retry is None and node.wait is None]
    remedy = (
        "if one fails, the run stays incomplete until the next call with its key, or recovery, resumes it. Add retry=."
    )
    if len(nodes) == 1:
        yield f"step {safe_repr(nodes[0].name)} comes after the pivot and is not retried: {remedy.replace('one', 'it', 1)}"
    elif nodes:
        yield f"{_named(nodes)} come after the pivot and are not retried: {remedy}"


def _cannot_be_stored(plan: Plan) -> Iterator[str]:
    by_type: dict[str, list[Node]] = {}
    for node in plan.nodes:
        for kind in _foreign(return_annotation(node.fn)):
            by_type.setdefault(kind, []).append(node)
    for kind, nodes in by_type.items():
        who = f"step {safe_repr(nodes[0].name)} returns" if len(nodes) == 1 else f"{_named(nodes)} return"
        yield f"{who} {kind}, which durable stores cannot keep. Return plain data, or give the store a codec= that keeps it."


def _wait_for_ever(plan: Plan, deadline: float | None) -> Iterator[str]:
    for node in plan.nodes:
        wait, name = node.wait, safe_repr(node.name)
        if wait is None:
            continue
        if wait.timeout is None and deadline is None:
            yield f"wait {name} has no timeout, so a run whose value is never sent waits forever: give it a timeout=."
        elif wait.timeout is not None and deadline is not None and wait.timeout >= deadline:
            yield (
                f"{'sleep' if wait.sleeps else 'wait'} {name} may take {wait.timeout:g} s, as long as the workflow's deadline of "
                f"{deadline:g} s or longer: raise that, or shorten it."
            )


def _foreign(annotation: Any) -> Iterator[str]:
    """Yield the classes, by name, in an annotation whose values neither the default codec nor PydanticCodec keeps."""
    arguments = get_args(annotation)
    known: Any = get_origin(annotation) or annotation
    kind: object = known
    if any(known is live for live in _LIVE):
        yield f"collections.abc.{known.__name__}"
        return
    for argument in arguments:
        yield from _foreign(argument)
    if not isinstance(kind, type) or kind.__module__ in {"typing", "types", "collections.abc"}:
        return
    structured = hasattr(known, "__dataclass_fields__") or hasattr(known, "__pydantic_core_schema__")
    enumerated = any(f"{base.__module__}.{base.__qualname__}" == "enum.Enum" for base in known.__mro__)
    containers: Any = (tuple, dict)
    named = issubclass(known, containers) and hasattr(known, "__annotations__")  # a NamedTuple, or a TypedDict
    name = f"{known.__module__}.{known.__qualname__}"
    if not (structured or enumerated or named or name in _STORABLE):
        yield name.removeprefix("builtins.")


def _worst_case(node: Node, deadline: float | None) -> Iterator[str]:
    """Yield a warning for each limit that is too short for all attempts of a step and the waits between them."""
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
