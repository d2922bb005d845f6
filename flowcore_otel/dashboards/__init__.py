"""Makes Grafana dashboards, and recording and alerting rules for Prometheus, from the catalogue of metrics.

`python -m flowcore_otel.dashboards --out FOLDER` writes them as files; `files` returns the same files to a program.
Needs the standard library only.
"""

from __future__ import annotations

from .files import FORMATS, SOURCES, Options, dashboards, files, rules

__all__ = ["FORMATS", "SOURCES", "Options", "dashboards", "files", "rules"]
