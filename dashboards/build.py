"""Writes the dashboards, and the rules for recording and alerting, from the catalogue of metrics.

    python dashboards/build.py                                # the files beside this one
    python dashboards/build.py --check                        # only say whether they are up to date
    python dashboards/build.py --source otlp --out DIRECTORY  # for metrics that came by OTLP, from MetricsHook

Alerts link to the runbook and to the dashboards: --runbook and --grafana say where yours are.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import yaml
from parts.alerts import Links, alerting
from parts.fields import Json
from parts.overview import overview
from parts.queries import OTLP, PROMETHEUS, Source
from parts.recording import recording
from parts.store import store
from parts.workflow import workflow

HERE = Path(__file__).parent
LINKS = Links(runbook="http://localhost:9090/user/RUNBOOK.md", grafana="http://localhost:3000")
"""where compose.yaml has them"""
SOURCES = {source.name: source for source in (PROMETHEUS, OTLP)}


def dashboards(q: Source) -> dict[str, Json]:
    """File name -> dashboard."""
    return {"overview.json": overview(q), "workflow.json": workflow(q), "store.json": store(q)}


def rules(q: Source, links: Links) -> dict[str, Json]:
    """File name -> groups of rules."""
    groups = {"recording": recording(dataclasses.replace(q, templated=False)), "alerts": alerting(q, links)}
    return {f"rules/{name}.yml": {"groups": listed} for name, listed in groups.items()}


def files(q: Source, links: Links) -> dict[str, str]:
    """File name -> content."""
    boards = {name: json.dumps(board, indent=2, ensure_ascii=False) + "\n" for name, board in dashboards(q).items()}
    head = "# Written by dashboards/build.py: change it there.\n"
    return boards | {name: head + _yaml(content) for name, content in rules(q, links).items()}


class _Dumper(yaml.SafeDumper):
    """Writes what has several lines as several lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(content: Json) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the dashboards and the rules.")
    parser.add_argument("--source", choices=SOURCES, default=PROMETHEUS.name, help="how the metrics come to Prometheus")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: beside this script)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    parser.add_argument("--runbook", default=LINKS.runbook, help=f"address of the runbook (default: {LINKS.runbook})")
    parser.add_argument("--grafana", default=LINKS.grafana, help=f"address of Grafana (default: {LINKS.grafana})")
    options = parser.parse_args()
    links = Links(options.runbook, options.grafana)
    stale = []
    for name, content in files(SOURCES[options.source], links).items():
        path = options.out / name
        if path.exists() and path.read_text("utf-8") == content:
            continue
        stale.append(name)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
    for name in stale:
        print(f"{name}: {'not up to date' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
