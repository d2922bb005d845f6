"""What telemetry costs: `python -m tests.benchmarks.telemetry_cost [--quick]` measures the hooks against their bars."""

from __future__ import annotations

import argparse
import gc

from . import table, telemetry_progress, telemetry_prometheus, telemetry_tracing
from .harness import Options

__all__ = ["main"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.telemetry_cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    options = Options(rounds=3 if quick else 11, batch=0.01 if quick else 0.03, quick=quick, subjects=())
    gc.freeze()
    reports = [module.measure(options) for module in (telemetry_tracing, telemetry_prometheus, telemetry_progress)]
    for report in reports:
        print(f"\n{table.as_text(report)}")
    print(f"\n{table.summary(reports)}")


if __name__ == "__main__":
    main()
