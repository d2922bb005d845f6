"""For tests: a trace as text that can be compared with a golden one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, StatusCode

from . import names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["span_tree"]


def span_tree(spans: Iterable[ReadableSpan]) -> str:
    """Finished spans as an indented tree, a line each, in order of starting; ids, times and durations are left out.

    A line has the name, the kind unless INTERNAL, ERROR with the error's type, `!` with each recorded exception, and
    `→` with each link: its type and its target's name. A span whose parent is not among `spans` is a root.

        run trip ERROR shop.Declined
        ├── step book
        ├── step pay ERROR shop.Declined ! shop.Declined → depends_on step book
        └── compensate book → compensates step book
    """
    ordered = sorted(spans, key=lambda span: span.start_time or 0)
    by_id = {span.context.span_id: span for span in ordered if span.context is not None}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in by_id else None
        children.setdefault(parent, []).append(span)

    def lines(span: ReadableSpan, first: str, rest: str) -> Iterator[str]:
        yield first + _line(span, by_id)
        below = children.get(span.context.span_id, []) if span.context is not None else []
        for child in below[:-1]:
            yield from lines(child, rest + "├── ", rest + "│   ")
        for child in below[-1:]:
            yield from lines(child, rest + "└── ", rest + "    ")

    return "\n".join(line for root in children.get(None, []) for line in lines(root, "", ""))


def _line(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> str:
    parts = [span.name]
    if span.kind is not SpanKind.INTERNAL:
        parts.append(span.kind.name)
    if span.status.status_code is StatusCode.ERROR:
        parts.append(f"ERROR {(span.attributes or {}).get(names.ERROR_TYPE, '')}".rstrip())
    for event in span.events:
        told = (event.attributes or {}).get(names.EXCEPTION_TYPE, "")
        parts.append(f"! {told if event.name == names.EXCEPTION else event.name}")
    for link in span.links:
        target = by_id.get(link.context.span_id)
        kind = (link.attributes or {}).get(names.LINK_TYPE, "")
        parts.append(f"→ {kind} {target.name if target is not None else '(elsewhere)'}")
    return " ".join(parts)
