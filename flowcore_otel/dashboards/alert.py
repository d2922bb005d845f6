"""What an alert consists of, and the limits that users set for their alerts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .queries import Source
from .recording import Rule

__all__ = [
    "AGE_LIMIT",
    "ENOUGH",
    "OBJECTIVE_OF_LATENCY",
    "OF",
    "SERVICE",
    "SUCCESS_LIMIT",
    "Alert",
    "Links",
]

ENOUGH: Final = 20
"""the number of runs, attempts or operations below which a share is not reliable"""

AGE_LIMIT: Final = "workflow:flowcore_run_age_limit:seconds"
"""a series that users may record: how long runs of a workflow may take. Default: an hour, or three times its p99"""
SUCCESS_LIMIT: Final = "workflow:flowcore_success_limit:seconds"
"""a series that users may record: how long a workflow may be without a success. Default: three times its longest pause"""
OBJECTIVE_OF_LATENCY: Final = "workflow:flowcore_latency_objective:ratio"
"""a series that users may record, by workflow and le: the share of runs that must not take longer than le seconds. Whether
le is written 5 or 5.0 does not matter"""
SERVICE: Final = "job:flowcore_service:info"
"""a series that users may record: the jobs that must always have a process"""

OF: Final = "Workflow {{ $labels.workflow }} of {{ $labels.job }}"


@dataclass(frozen=True)
class Links:
    """The addresses that alerts link to."""

    runbook: str
    """address of RUNBOOK.md"""
    grafana: str
    """address of Grafana"""


@dataclass(frozen=True)
class Alert:
    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    description: str
    board: str = "overview"
    labels: dict[str, str] = field(default_factory=dict[str, str])

    def rule(self, q: Source, links: Links) -> Rule:
        annotations = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{links.runbook}#{self.name.lower()}",
            "dashboard_url": f"{links.grafana}/d/flowcore-{self.board}{self._chosen()}",
        }
        workflow = q.label("workflow")
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasting} if self.lasting else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {k: v.replace("$labels.workflow", f"$labels.{workflow}") for k, v in annotations.items()},
        }

    def _chosen(self) -> str:
        """Return the part of the address that sets the dashboard's variables to the labels of this alert."""
        texts = f"{self.summary} {self.description}"
        chosen = [name for name in ("job", "workflow") if f"$labels.{name} " in texts]
        return "?" + "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in chosen) if chosen else ""
