"""Asks Prometheus what a dashboard asks, with Grafana's variables filled in."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Asking", "Exemplar", "Mark", "PrometheusError", "Series", "filled_in"]

Json = dict[str, Any]

ALL: Final = ".+"
POINTS: Final = 240  # of a line, at most


class PrometheusError(Exception):
    """Prometheus cannot be reached, or has something to say against a query."""


@dataclass(frozen=True)
class Series:
    """A series and its values: (seconds since the epoch, value)."""

    labels: Mapping[str, str]
    points: list[tuple[float, float]]
    ref: str
    """the query it came from: A, B, ..."""
    legend: str

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Exemplar:
    at: float
    value: float


def filled_in(expr: str, *, seconds: float, step: float, scrape: float, chosen: Mapping[str, str]) -> str:
    """The query with values for Grafana's variables. `$__rate_interval` is four scrapes, or a step and a scrape."""
    values = {
        "__rate_interval": f"{math.ceil(max(step + scrape, 4 * scrape))}s",
        "__range": f"{round(seconds)}s",
        "__interval": f"{math.ceil(step)}s",
        **chosen,
    }
    return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda found: values.get(found[1] or found[2], ALL), expr)


@dataclass(frozen=True)
class Mark:
    """An annotation: a moment, what it is, and its colour."""

    at: float
    text: str
    colour: str


@dataclass(frozen=True)
class Asking:
    """A Prometheus, a time range, and what is chosen for the dashboard's variables (what is not: all)."""

    url: str
    start: float
    """seconds since the epoch"""
    end: float
    scrape: float = 15.0
    """seconds between scrapes, as Grafana's data source is told"""
    chosen: Mapping[str, str] = field(default_factory=dict[str, str])
    marks: list[Mark] = field(default_factory=list[Mark])
    """the dashboard's annotations in the range, once they have been asked for"""

    def annotate(self, board: Json) -> None:
        """Ask for the dashboard's annotations; the panels are drawn with them."""
        for one in board.get("annotations", {}).get("list", []):
            found = self._get(
                "query_range", query=self.expr(one["expr"]), start=self.start, end=self.end, step=min(60, self.step)
            )
            for series in found["result"]:
                text = _legend(one["titleFormat"], series["metric"])
                at = _points(series)[0][0]
                if at > self.start:
                    self.marks.append(Mark(at, text, one["iconColor"]))

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def step(self) -> float:
        return max(self.scrape, self.seconds / POINTS)

    def expr(self, expr: str) -> str:
        return filled_in(expr, seconds=self.seconds, step=self.step, scrape=self.scrape, chosen=self.chosen)

    def series(self, target: Json) -> list[Series]:
        """What a query of a panel answers."""
        expr = self.expr(target["expr"])
        if target["instant"]:
            found = self._get("query", query=expr, time=self.end)
        else:
            found = self._get("query_range", query=expr, start=self.start, end=self.end, step=self.step)
        return [
            Series(one["metric"], _points(one), target["refId"], _legend(target["legendFormat"], one["metric"]))
            for one in found["result"]
        ]

    def exemplars(self, target: Json) -> list[Exemplar]:
        found = self._get("query_exemplars", query=self.expr(target["expr"]), start=self.start, end=self.end)
        return [
            Exemplar(float(one["timestamp"]), float(one["value"])) for series in found for one in series["exemplars"]
        ]

    def _get(self, path: str, **parameters: Any) -> Any:
        url = f"{self.url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.loads(response.read())["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"Prometheus refuses {parameters['query']}: {error.read().decode()}") from error
        except (OSError, ValueError) as error:
            raise PrometheusError(f"Prometheus at {self.url} is unreachable: {error}") from error


def _points(one: Json) -> list[tuple[float, float]]:
    values = one["values"] if "values" in one else [one["value"]]
    return [(float(at), float(value)) for at, value in values]


def _legend(template: str, labels: Mapping[str, str]) -> str:
    if template == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items()) or "value"
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)
