"""Writes the dashboards, the rules for recording and alerting, and the runbook.

python -m flowcore_otel.dashboards --format files --runbook https://wiki.example/flowcore --out flowcore-dashboards
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import FORMATS, SOURCES, Options, files
from .queries import OTLP, PROMETHEUS

__all__ = ["main"]

_DEFAULTS = Options()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files. Returns the exit code: 1 if `--check` finds a file that would change, else 0."""
    parser = argparse.ArgumentParser(
        "python -m flowcore_otel.dashboards",
        description="Writes dashboards for Grafana, rules for Prometheus, and a runbook.",
    )
    parser.add_argument("--format", choices=FORMATS, default="files", help="kubernetes: ConfigMaps and PrometheusRules")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--source", choices=(PROMETHEUS.name, OTLP.name), default=PROMETHEUS.name, help="how metrics reach Prometheus"
    )
    parser.add_argument(
        "--histograms", choices=("classic", "native"), default="classic", help="native: exponential ones, sent by OTLP"
    )
    parser.add_argument("--runbook", default=_DEFAULTS.runbook, help="address of the runbook that alerts link to")
    parser.add_argument("--grafana", default=_DEFAULTS.grafana, help="address of Grafana that alerts link to")
    parser.add_argument(
        "--traces", choices=("tempo", "jaeger", "none"), default=_DEFAULTS.traces, help="where traces are"
    )
    parser.add_argument(
        "--service", action="append", default=[], metavar="JOB", help="a job that must always have a process"
    )
    parser.add_argument("--namespace", default=_DEFAULTS.namespace, help="for kubernetes")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    chosen = parser.parse_args(arguments)
    options = Options(
        source=SOURCES["native" if chosen.histograms == "native" else chosen.source],
        runbook=chosen.runbook,
        grafana=chosen.grafana.rstrip("/"),
        traces=chosen.traces,
        services=tuple(chosen.service),
        namespace=chosen.namespace,
    )
    try:
        stale = _stale(chosen.out, files(options, chosen.format), write=not chosen.check)
    except OSError as error:
        parser.exit(
            2,
            f"--out {chosen.out} cannot be used: {error.strerror}: {error.filename}. Name a folder that you may write.\n",
        )
    for name in stale:
        sys.stdout.write(f"{name}: {'not up to date' if chosen.check else 'written'}\n")
    return 1 if chosen.check and stale else 0


def _stale(folder: Path, contents: Mapping[str, str], *, write: bool) -> list[str]:
    """Return the files of the folder that are missing or differ, after writing them if `write`."""
    stale: list[str] = []
    for name, content in contents.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        stale.append(name)
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
