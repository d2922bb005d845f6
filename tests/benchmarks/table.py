"""Reports as text for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .harness import Report, Row

__all__ = ["as_json", "as_text", "summary"]

COUNTED = frozenset({"MiB", "round trips"})
"""targets that are no ratios"""


def as_text(report: Report) -> str:
    head = ("", report.unit, "best", f"× {report.relative}", "target", "")
    body = [
        (
            row.subject,
            _number(row.figure),
            "" if row.best is None else _number(row.best),
            "" if row.ratio is None else _number(row.ratio),
            _target(row),
            " ".join(part for part in (_verdict(row), row.note) if part),
        )
        for row in report.rows
    ]
    lines = [f"{report.name}: {report.title}", *_columns([head, *body]), *(f"  {note}" for note in report.notes)]
    return "\n".join(lines)


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for row in cells:
        padded = [
            cell.rjust(width) if 0 < place < 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(padded)).rstrip())
    return lines


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    unit = row.target.reference if row.target.reference in COUNTED else f"× {row.target.reference}"
    return f"≤ {row.target.limit:.3g} {unit}"


def _verdict(row: Row) -> str:
    if row.met is None or row.against is None:
        return ""
    return f"{row.against:.3g}: {'met' if row.met else 'MISSED'}"


def summary(reports: Sequence[Report]) -> str:
    """How many targets are met, and which are not."""
    judged = [(report, row) for report in reports for row in report.rows if row.met is not None]
    missed = [f"{report.name} {row.subject}" for report, row in judged if not row.met]
    text = f"{len(judged) - len(missed)} of {len(judged)} targets met"
    return f"{text}; missed: {', '.join(missed)}" if missed else text


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "workloads": [
            {**asdict(report), "rows": [{**asdict(row), "met": row.met} for row in report.rows]} for report in reports
        ],
    }
