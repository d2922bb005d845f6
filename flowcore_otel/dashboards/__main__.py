"""Writes the dashboards, the rules for recording and alerting, and the runbook.

python -m flowcore_otel.dashboards --format files --runbook https://wiki.example/flowcore --out flowcore-dashboards
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import FORMATS, SOURCES, Options, files
from .queries import OTLP, PROMETHEUS

__all__ = ["main"]

_DEFAULTS = Options()


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("name a folder; '.' is the present one.")
    return Path(text)


def _address(text: str) -> str:
    # An alert's address continues with `#` and its name, and Prometheus takes two braces for a template.
    if re.search(r"[\s#{}\"]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has spaces, quotes, braces or '#', which an address cannot have here."
        )
    return text


def _page(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("name the address of a page.")
    return _address(text)


def _job(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("name a job of Prometheus, as in its label job.")
    return text


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the name of a namespace: use at most 63 of a-z, 0-9 and '-', with '-' neither first nor last."
        )
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files. Returns the exit code: 1 if `--check` finds a file that would change, else 0."""
    parser = argparse.ArgumentParser(
        "python -m flowcore_otel.dashboards",
        description="Writes dashboards for Grafana, rules for Prometheus, and a runbook.",
    )
    parser.add_argument("--format", choices=FORMATS, default="files", help="kubernetes: ConfigMaps and PrometheusRules")
    parser.add_argument("--out", type=_folder, required=True, help="folder to write to")
    parser.add_argument(
        "--source",
        choices=(PROMETHEUS.name, OTLP.name),
        help=f"how metrics reach Prometheus (default: {PROMETHEUS.name}; {OTLP.name} for native histograms)",
    )
    parser.add_argument(
        "--histograms", choices=("classic", "native"), default="classic", help="native: exponential ones, sent by OTLP"
    )
    parser.add_argument(
        "--runbook", type=_page, default=_DEFAULTS.runbook, help="address of the runbook that alerts link to"
    )
    parser.add_argument(
        "--grafana", type=_address, default=_DEFAULTS.grafana, help="address of Grafana that alerts link to"
    )
    parser.add_argument(
        "--traces", choices=("tempo", "jaeger", "none"), default=_DEFAULTS.traces, help="where traces are"
    )
    parser.add_argument(
        "--service", action="append", default=[], type=_job, metavar="JOB", help="a job that must always have a process"
    )
    parser.add_argument("--namespace", type=_namespace, default=_DEFAULTS.namespace, help="for kubernetes")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    chosen = parser.parse_args(arguments)
    native = chosen.histograms == "native"
    if native and chosen.source == PROMETHEUS.name:
        parser.error("--histograms native needs --source otlp: PrometheusHook has classic histograms only.")
    options = Options(
        source=SOURCES["native" if native else chosen.source or PROMETHEUS.name],
        runbook=chosen.runbook,
        grafana=chosen.grafana.rstrip("/"),
        traces=chosen.traces,
        services=tuple(dict.fromkeys(chosen.service)),
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
    for name, text in contents.items():
        path, content = folder / name, text.encode()
        if path.exists() and path.read_bytes() == content:
            continue
        stale.append(name)
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return stale


if __name__ == "__main__":
    sys.exit(main())
