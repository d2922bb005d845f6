"""The catalogue as Markdown, for documents.

`python dashboards/catalogue.py` writes all of it into flowcore_otel/TELEMETRY.md, between the
lines of `MARKS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from flowcore_otel import names

__all__ = ["DOCUMENTS", "MARKS", "metrics", "rewritten", "spans", "table", "whole"]

MARKS: Final = "<!-- catalogue -->", "<!-- end of the catalogue -->"

_UNITS: Final = {"s": "seconds"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _meanings(head: str, meanings: Mapping[str, str]) -> str:
    return table((head, "meaning"), ((f"`{name}`", meaning) for name, meaning in meanings.items()))


def spans() -> str:
    """Spans, their attributes, and log events: three tables."""
    return "\n\n".join(
        (_named_spans(), _meanings("attribute", names.ATTRIBUTES), _meanings("log event", names.LOG_EVENTS))
    )


def _named_spans() -> str:
    return _meanings("span", {f"{action} {{…}}": meaning for action, meaning in names.SPANS.items()})


def metrics() -> str:
    """Metrics under both of their names, and their labels under both of theirs: two tables."""
    rows = (
        (
            f"`{metric.prometheus}`",
            f"`{metric.name}`",
            metric.kind,
            _UNITS.get(metric.unit, metric.unit.strip("{}")),
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.help,
        )
        for metric in names.METRICS
    )
    labels = ((f"`{label}`", f"`{attribute}`") for label, attribute in names.LABELS.items())
    return "\n\n".join(
        (
            table(("in Prometheus", "in OpenTelemetry", "type", "unit", "labels", "meaning"), rows),
            table(("label in Prometheus", "attribute in OpenTelemetry"), labels),
            _buckets(),
        )
    )


def _buckets() -> str:
    def listed(buckets: tuple[float, ...]) -> str:
        return ", ".join(f"{bound:g}" for bound in buckets)

    return (
        f"Buckets of histograms, in seconds: {listed(names.BUCKETS)}; "
        f"of `{names.STORE_DURATION.name}`: {listed(names.STORE_BUCKETS)}."
    )


def whole() -> str:
    """All of it."""
    return f"### Spans and log events\n\n{spans()}\n\n### Metrics\n\n{metrics()}"


def rewritten(text: str, tables: str, marks: tuple[str, str] = MARKS) -> str:
    """A document with `tables` between its marks. Raises ValueError where these are missing."""
    before, first, rest = text.partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not (first and last):
        raise ValueError(f"The document lacks the line {marks[0]} or, after it, the line {marks[1]}.")
    return f"{before}{first}\n\n{tables}\n\n{last}{after}"


ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = {ROOT / "flowcore_otel" / "TELEMETRY.md": whole}
"""documents, and what stands between their marks"""

if __name__ == "__main__":
    for document, tables in DOCUMENTS.items():
        document.write_text(rewritten(document.read_text(encoding="utf-8"), tables()), encoding="utf-8")
