"""Dashboards for Grafana, and rules for recording and alerting, from the catalogue of metrics. Needs the standard library only.

`python -m flowcore_otel.dashboards --help` writes them; `files` is the same as a function.
"""

from __future__ import annotations

from .files import FORMATS, SOURCES, Options, dashboards, files, rules

__all__ = ["FORMATS", "SOURCES", "Options", "dashboards", "files", "rules"]
