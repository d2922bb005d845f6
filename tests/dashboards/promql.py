"""PromQL as Grafana's dashboards have it: with variables in it, which are filled in before it is parsed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import promql_parser

RATE_INTERVAL = timedelta(hours=7, seconds=11)
"""what stands in for $__rate_interval: a time that no query contains"""

WINDOWS = {"$__rate_interval": "7h11s", "$__range": "5h", "$__interval": "3m"}


@dataclass(frozen=True)
class Selector:
    """What a query asks for: a metric, and which of its series."""

    metric: str
    matchers: dict[str, tuple[str, str]]
    """label -> (operator, value)"""
    window: timedelta | None
    function: str | None
    """which is applied to it right away"""


def parse(expr: str) -> Any:
    """Raises ValueError where it is no PromQL."""
    for variable, window in WINDOWS.items():
        expr = re.sub(re.escape(variable) + r"\b", window, expr)
    return promql_parser.parse(expr)


def selectors(expr: str) -> list[Selector]:
    return list(_selectors(parse(expr), None))


def labels_used(expr: str) -> set[str]:
    """Labels that the query groups by, or matches on."""
    found: set[str] = set()

    def visit(node: Any) -> None:
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            found.update(modifier.labels)
        if isinstance(node, promql_parser.VectorSelector):
            found.update(matcher.name for matcher in node.matchers.matchers)

    promql_parser.walk(parse(expr), visit)
    return found


def _selectors(node: Any, function: str | None) -> Iterator[Selector]:
    match node:
        case promql_parser.VectorSelector():
            yield _selector(node, None, function)
        case promql_parser.MatrixSelector():
            yield _selector(node.vector_selector, node.range, function)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selectors(argument, node.func.name)
        case _:
            for name in ("expr", "param", "lhs", "rhs"):
                child = getattr(node, name, None)
                if isinstance(child, promql_parser.Expr):
                    yield from _selectors(child, None)


def _selector(node: Any, window: timedelta | None, function: str | None) -> Selector:
    operators = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
    matchers = {m.name: (operators[str(m.op).rpartition(".")[2]], m.value) for m in node.matchers.matchers}
    return Selector(node.name or "", matchers, window, function)
