"""Run the benchmarks: `python -m tests.benchmarks [WORKLOAD ...] [--quick] [--rounds N] [--subjects PATTERN,...]`."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from . import table
from .harness import Options, Report
from .peers import installed
from .subjects import OURS

WORKLOADS = {
    "W1": "w1_chain_of_10",
    "W2": "w2_chain_of_100",
    "W3": "w3_fan_out",
    "W4": "w4_two_chains",
    "W4b": "w4b_ten_chains",
    "W5": "w5_saga",
    "W6": "w6_retries",
    "W7": "w7_thousand_runs",
    "logger": "no_op_logger",
    "import": "import_time",
    "scaling": "scaling",
    "redis": "durable_redis",
    "redis-server": "durable_redis_server",
    "sqlite": "durable_sqlite",
    "dbos": "durable_dbos",
    "durable-scaling": "durable_scaling",
    "durable-growth": "durable_growth",
    "durable-recovery": "durable_recovery",
    "durable-capacity": "durable_capacity",
}


def main() -> int:
    arguments = _parsed()
    peers, missing = ([], []) if arguments.no_peers else installed()
    for sentence in missing:
        print(sentence)
    options = Options(
        rounds=arguments.rounds or (3 if arguments.quick else 11),
        batch=0.005 if arguments.quick else 0.03,
        quick=arguments.quick,
        subjects=(*OURS, *peers),
        only=[pattern for pattern in (arguments.subjects or "").split(",") if pattern],
    )
    gc.freeze()  # what the imports have left would be looked through again and again
    reports: list[Report] = []
    for name in arguments.workloads or WORKLOADS:
        measure: Callable[[Options], Report] = import_module(f".{WORKLOADS[name]}", __package__).measure
        reports.append(measure(options))
        print(f"\n{table.as_text(reports[-1])}", flush=True)
    print(f"\n{table.summary(reports)}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table.as_json(reports), indent=1) + "\n", encoding="utf-8")
    return 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Ratios count, not microseconds: subjects take turns, and each ratio is between two turns of one round.",
    )
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, []], metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--quick", action="store_true", help="a rough look in half a minute")
    parser.add_argument("--rounds", type=int, help="turns of each subject (default 11, quick 3)")
    parser.add_argument("--subjects", help="only these, as comma-separated patterns such as '*Engine,burr'")
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    parser.add_argument("--json", metavar="FILE", help="also write everything measured to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
