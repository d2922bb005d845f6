"""Renders dashboards, rules and runbook as files: JSON and YAML, objects for Kubernetes, or a mixin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import Final

from .alert import SERVICE, Links
from .alerts import alerting
from .fields import Json
from .overview import overview
from .queries import NATIVE, OTLP, PROMETHEUS, Source
from .recording import recording
from .store import store
from .workflow import workflow
from .yaml import to_yaml

__all__ = ["FORMATS", "SOURCES", "Options", "dashboards", "files", "rules"]

SOURCES: Final = {source.name: source for source in (PROMETHEUS, OTLP, NATIVE)}
_HEAD: Final = "# Written by python -m flowcore_otel.dashboards.\n"


@dataclass(frozen=True)
class Options:
    """The user's choices: how the metrics reach Prometheus, where links lead, and which jobs are services."""

    source: Source = PROMETHEUS
    runbook: str = "RUNBOOK.md"
    """address of the runbook"""
    grafana: str = ""
    """address of Grafana; links to dashboards are relative without it"""
    traces: str = "tempo"
    """where traces are: tempo, jaeger or none"""
    services: tuple[str, ...] = ()
    """jobs that must always have a process; the alert FlowcoreAbsent fires if one has none"""
    namespace: str = "monitoring"
    """namespace of the Kubernetes objects"""

    @property
    def links(self) -> Links:
        return Links(self.runbook, self.grafana)

    @property
    def of_panels(self) -> Source:
        """The source for dashboards, which also need the addresses of traces and runbook."""
        return dataclasses.replace(self.source, traces=self.traces, runbook=self.runbook)


def dashboards(options: Options) -> dict[str, Json]:
    """Return the dashboards by name."""
    q = options.of_panels
    return {"overview": overview(q), "workflow": workflow(q), "store": store(q)}


def rules(options: Options) -> dict[str, Json]:
    """Return the recording and alerting rules by name, each as `{"groups": [...]}`."""
    groups = recording(dataclasses.replace(options.source, templated=False))
    if options.services:
        declared = [{"record": SERVICE, "expr": "vector(1)", "labels": {"job": job}} for job in options.services]
        groups.append({"name": "flowcore-services", "rules": declared})
    return {"recording": {"groups": groups}, "alerts": {"groups": alerting(options.source, options.links)}}


def runbook() -> str:
    return (resources("flowcore_otel.dashboards") / "RUNBOOK.md").read_text(encoding="utf-8")


def _json(content: Json) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _plain(options: Options) -> dict[str, str]:
    written = {f"{name}.json": _json(board) for name, board in dashboards(options).items()}
    written |= {f"rules/{name}.yml": _HEAD + to_yaml(groups) for name, groups in rules(options).items()}
    return written | {"RUNBOOK.md": runbook()}


def _kubernetes(options: Options) -> dict[str, str]:
    """ConfigMaps for the sidecar of Grafana's Helm chart, and PrometheusRules for the Prometheus operator."""

    def metadata(name: str, labels: Mapping[str, str]) -> Json:
        return {"name": f"flowcore-{name}", "namespace": options.namespace, "labels": dict(labels)}

    objects: dict[str, Json] = {
        f"dashboard-{name}.yaml": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(f"dashboard-{name}", {"grafana_dashboard": "1"}),
            "data": {f"flowcore-{name}.json": _json(board)},
        }
        for name, board in dashboards(options).items()
    }
    for name, groups in rules(options).items():
        objects[f"rules-{name}.yaml"] = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": metadata(name, {"app.kubernetes.io/name": "flowcore", "release": "prometheus"}),
            "spec": groups,
        }
    return {name: _HEAD + to_yaml(content) for name, content in objects.items()} | {"RUNBOOK.md": runbook()}


_MIXIN: Final = """\
// Written by python -m flowcore_otel.dashboards.
{
  grafanaDashboards+:: {
    'flowcore-overview.json': import 'overview.json',
    'flowcore-workflow.json': import 'workflow.json',
    'flowcore-store.json': import 'store.json',
  },
  prometheusRules+:: { groups+: (import 'recording.json').groups },
  prometheusAlerts+:: { groups+: (import 'alerts.json').groups },
}
"""


def _mixin(options: Options) -> dict[str, str]:
    """For jsonnet: dashboards, recording rules and alerts as fields of one object."""
    parts = dashboards(options) | rules(options)
    return {"mixin.libsonnet": _MIXIN, "RUNBOOK.md": runbook()} | {
        f"{name}.json": _json(of) for name, of in parts.items()
    }


FORMATS: Final[Mapping[str, Callable[[Options], dict[str, str]]]] = {
    "files": _plain,
    "kubernetes": _kubernetes,
    "mixin": _mixin,
}


def files(options: Options, form: str = "files") -> dict[str, str]:
    """Return the contents of all files by file name. `form`: one of FORMATS."""
    return FORMATS[form](options)
