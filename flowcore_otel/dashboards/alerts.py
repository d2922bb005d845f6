"""Alerts: four for burning the error budget, and one for each cause that is worth a page or a ticket.

Each has a section in RUNBOOK.md. Severity "page" means that a person must act now, "ticket" that a person must act this
week. Users set their own limits by recording the series AGE_LIMIT, SUCCESS_LIMIT, OBJECTIVE_OF_LATENCY and SERVICE.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from .alert import ENOUGH, OF, Alert, Links
from .common import OBJECTIVE
from .process_alerts import of_store, of_telemetry, of_workers
from .queries import Source
from .recording import ratio, runs
from .run_alerts import of_runs, of_schedules

__all__ = ["alerting"]

# (long window, short window, burn rate as a multiple of what the budget allows, for, severity)
BURNS: Final = (
    ("1h", "5m", 14.4, "2m", "page"),
    ("6h", "30m", 6, "15m", "page"),
    ("1d", "2h", 3, "1h", "ticket"),
    ("3d", "6h", 1, "3h", "ticket"),
)


def alerting(q: Source, links: Links) -> list[dict[str, object]]:
    """Return the groups of alerting rules."""
    q = dataclasses.replace(q, templated=False)
    groups = {
        "flowcore-burn": _burning(),
        "flowcore-causes": [*of_runs(q), *of_schedules(q), *of_workers(q), *of_store(q), *of_telemetry(q)],
    }
    return [{"name": name, "rules": [alert.rule(q, links) for alert in alerts]} for name, alerts in groups.items()]


def _burning() -> list[Alert]:
    budget = f"{1 - OBJECTIVE:g}"
    return [
        Alert(
            "FlowcoreErrorBudgetBurn",
            f"{ratio(long)} > {factor:g} * {budget}\nand {ratio(short)} > {factor:g} * {budget}\n"
            f"and {runs(long)} >= {ENOUGH}",
            lasting,
            severity,
            f"{OF} spends its error budget too fast",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last {long} were bad (failed, failed to "
            f"be undone, were parked or lost), and this continues. The objective is {OBJECTIVE:.1%} good ones.",
            "workflow",
            {"long": long, "short": short},
        )
        for long, short, factor, lasting, severity in BURNS
    ]
