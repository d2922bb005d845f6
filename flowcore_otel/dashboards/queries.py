"""Builds PromQL queries. The names of flowcore's metrics and labels all come from `flowcore_otel.names`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flowcore_otel import names
from flowcore_otel.names import Metric

__all__ = [
    "BAD",
    "LEFT",
    "NATIVE",
    "OF_THE_TARGET",
    "OTLP",
    "PROMETHEUS",
    "SERVED",
    "UNDONE",
    "WAITING",
    "Source",
    "new_or_more",
]

BAD: Final = "failure|compensation_failed|parked|lost"
"""outcomes of runs that use up the error budget: the workflow neither succeeded nor was cleanly undone"""

UNDONE: Final = "compensated"
"""the outcome of runs that failed and were cleanly undone, for instance after a declined card"""

SERVED: Final = "success"
"""the outcome of successful runs"""

LEFT: Final = "held|expired|overdue"
"""statuses of runs in a store that stay there until a person or a process does something about them"""

WAITING: Final = "held|parked|incomplete|expired|overdue"
"""statuses of runs in a store that no process works on"""

OF_THE_TARGET: Final = ("up", "scrape_samples_scraped", "scrape_duration_seconds")
"""series that Prometheus itself writes about each target that it scrapes"""

_TEMPLATED: Final = ("job", "instance", "workflow")


@dataclass(frozen=True)
class Source:
    """How the metrics reach Prometheus, which determines the names of their labels; its methods build queries."""

    name: str
    scraped: bool
    """whether Prometheus scrapes the process, and so has `up` and similar series"""
    templated: bool = True
    """whether selectors use the variables job, instance and workflow of a dashboard"""
    one_workflow: bool = False
    """whether that variable workflow is one name, which Grafana does not escape for regular expressions, as in `C++`"""
    native: bool = False
    """whether histograms are native, without series for counts, sums and buckets"""
    traces: str = "tempo"
    """where traces are: tempo, jaeger or none"""
    runbook: str = ""
    """address of the runbook"""

    def label(self, label: str) -> str:
        """Return the name of a catalogue label in this source. Other labels (job, instance, le) do not change."""
        if self.scraped or label not in names.LABELS:
            return label
        return names.LABELS[label].replace(".", "_")

    def legend(self, template: str) -> str:
        """Return a legend such as `{{workflow}} p95` with the label names of this source."""
        return re.sub(r"\{\{(\w+)\}\}", lambda found: f"{{{{{self.label(found[1])}}}}}", template)

    def by(self, *labels: str) -> str:
        return f"by ({', '.join(map(self.label, labels))})"

    def select(self, metric: Metric, part: str = "", **matchers: str) -> str:
        """Return a selector. `part`: count, sum or bucket of a histogram. `matchers`: label="value", or "a|b" for any
        of several values, or "!=value".

        Raises ValueError for a part or a label that the metric does not have.
        """
        if (metric.kind == "histogram") != (part in {"count", "sum", "bucket"}):
            raise ValueError(f"{metric.name} is a {metric.kind} and has no part {part!r}.")
        unknown = set(matchers) - set(metric.labels)
        if unknown:
            raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}.")
        chosen = [self._chosen(label) for label in _TEMPLATED if self.templated and self._has(metric, label)]
        chosen += [_matcher(self.label(label), value) for label, value in matchers.items()]
        name = f"{metric.prometheus}_{part}" if part and not self.native else metric.prometheus
        return f"{name}{{{', '.join(chosen)}}}" if chosen else name

    @staticmethod
    def _has(metric: Metric, label: str) -> bool:
        return label in {"job", "instance"} or label in metric.labels

    def _chosen(self, label: str) -> str:
        operator = "=" if self.one_workflow and label == "workflow" else "=~"
        return f'{self.label(label)}{operator}"${label}"'

    def recorded(self, record: str) -> str:
        """Return a selector for a series of recording.py that describes workflows."""
        return f"{record}{{{self._chosen('job')}, {self._chosen('workflow')}}}"

    def of_target(self, name: str) -> str:
        """Return a query for one of the series OF_THE_TARGET, of jobs that have flowcore. Raises ValueError for another name."""
        if name not in OF_THE_TARGET:
            raise ValueError(f"{name} is none of {', '.join(OF_THE_TARGET)}.")
        of_process = f"{{{self._chosen('job')}, {self._chosen('instance')}}}"
        ours = f"last_over_time({names.BUILD_INFO.prometheus}{of_process}[1d])"
        return f"({name}{of_process} and on (job) {ours})"

    def rate(
        self, metric: Metric, part: str = "", *, offset: str = "", by: tuple[str, ...] = (), **matchers: str
    ) -> str:
        """Return a query for the rate per second, over a window that Grafana fits to the width of the panel."""
        return self._sum(f"rate({self.select(metric, part, **matchers)}[$__rate_interval]{offset})", part, by)

    def increase(
        self,
        metric: Metric,
        part: str = "",
        *,
        window: str = "$__range",
        offset: str = "",
        by: tuple[str, ...] = (),
        **matchers: str,
    ) -> str:
        """Return a query for the increase in `window`, by default the whole range that the dashboard shows."""
        return self._sum(f"increase({self.select(metric, part, **matchers)}[{window}]{offset})", part, by)

    def occurred(self, metric: Metric, *, by: tuple[str, ...]) -> str:
        """Return a query for the increase of a counter in the range shown, including series that came into being in it.

        Those begin with their first event, which increase() does not see, and their processes may have ended since.
        """
        series = self.select(metric)
        known = f"(increase({series}[$__range]) and last_over_time({series}[1d] offset $__range))"
        return f"round(sum {self.by(*by)} ({known} or last_over_time({series}[$__range])))"

    def _sum(self, rates: str, part: str, by: tuple[str, ...]) -> str:
        if self.native and part in {"count", "sum"}:
            rates = f"histogram_{part}({rates})"
        return f"sum {self.by(*by)} ({rates})" if by else f"sum({rates})"

    def quantile(
        self,
        q: float,
        metric: Metric,
        *,
        by: tuple[str, ...] = (),
        over: str = "$__rate_interval",
        offset: str = "",
        **matchers: str,
    ) -> str:
        """Return a query for the quantile `q` (0 to 1) of what was observed in the window `over`."""
        function = "increase" if over == "$__range" else "rate"
        buckets = f"{function}({self.select(metric, 'bucket', **matchers)}[{over}]{offset})"
        labels = by if self.native else (*by, "le")
        return f"histogram_quantile({q:g}, {self._sum(buckets, 'bucket', labels)})"

    def most(self, metric: Metric, number: int = 6, *, by: tuple[str, ...], **matchers: str) -> str:
        """Return the right side of an `and` that keeps the `number` series with the largest increase in the time shown.

        The panel then has few lines, and the same ones at each point in time.
        """
        counted = self._sum(f"increase({self.select(metric, **matchers)}[$__range] @ end())", "", by)
        return f"on ({', '.join(map(self.label, by))}) topk({number}, {counted})"

    def age(self, metric: Metric, **matchers: str) -> str:
        """Return a query for the seconds since a timestamp, by the clock of the process that has reported it.

        The clock of Prometheus replaces one that is not reported, as in multiprocess mode, or that stands still, as in a
        Pushgateway. Two clusters may have the same jobs and instances, hence the maximum.
        """
        reported, clock = self.select(metric, **matchers), self.select(names.CLOCK)
        ticking = f"max by (job, instance) ({clock} unless {clock} == {clock} offset 5m)"
        return f"({ticking} - on (job, instance) group_right () {reported} or time() - {reported})"

    def alerts(self) -> str:
        """Return a query for the alerts that fire now."""
        return 'ALERTS{alertname=~"Flowcore.+", alertstate="firing", job=~"$job"}'

    def firing_for(self) -> str:
        """Return a query for the seconds for which each alert that fires now has fired in the range shown."""
        return f"sum_over_time({self.alerts()}[$__range:1m]) * 60 and {self.alerts()}"

    def stored(self, status: str, *, by: tuple[str, ...] = ("workflow", "status")) -> str:
        """Return a query for the runs in the store, by status.

        Every process counts the runs of the same store, so the query takes the maximum, not the sum.
        """
        return f"max {self.by('job', *by)} ({self.select(names.STORE_RUNS, status=status)})"


def new_or_more(counter: str, window: str, by: str) -> str:
    """Return a query for the increase of a counter in `window`. Unlike increase(), it includes series that have just appeared.

    A series that Prometheus could not scrape for less than a day has not just appeared. If it has grown meanwhile, all of it
    counts.
    """
    before = f"last_over_time({counter}[1d] offset {window})"
    return f"sum {by} (increase({counter}[{window}])) > 0\nor\nsum {by} ({counter} unless {counter} <= {before}) > 0"


def _matcher(label: str, value: str) -> str:
    negated = value.startswith("!=")
    value = value.removeprefix("!=")
    operator = {(False, False): "=", (False, True): "=~", (True, False): "!=", (True, True): "!~"}
    return f'{label}{operator[negated, "|" in value]}"{value}"'


PROMETHEUS: Final = Source("prometheus", scraped=True)
"""the metrics of PrometheusHook, scraped"""
OTLP: Final = Source("otlp", scraped=False)
"""the metrics of MetricsHook, sent by OTLP"""
NATIVE: Final = Source("native", scraped=False, native=True)
"""the metrics of MetricsHook, sent by OTLP, with exponential histograms"""
