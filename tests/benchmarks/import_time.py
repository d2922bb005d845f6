"""What `import flowcore` costs a process that starts: against the modules of the standard library that any such
library needs. Each import happens in a new interpreter, with its bytecode cached.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from .harness import Options, Report, Row, Target, interleaved, median_ratio
from .memory import ROOT

STANDARD = "dataclasses, concurrent.futures, asyncio, logging"
TARGET = Target("import flowcore", 1.5, f"import {STANDARD}")


def seconds(modules: str) -> float:
    """Seconds that importing takes in a new interpreter that has imported nothing but what it needs itself."""
    code = (
        "import sys; sys.path.append(sys.argv[1]); from time import perf_counter as now\n"
        f"before = now()\nimport {modules}\nprint(now() - before)"
    )
    # -S: what site-packages' .pth files import would be free then.
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: Options) -> Report:
    turns = {f"import {modules}": partial(seconds, modules) for modules in (STANDARD, "flowcore")}
    for turn in turns.values():
        turn()  # writes the bytecode
    samples = interleaved(turns, options.rounds * 2)
    report = Report("import", "importing the library in a new interpreter", "µs", TARGET.reference)
    for name in turns:
        ratio = median_ratio(samples, name, TARGET.reference)
        target = TARGET if name == TARGET.subject else None
        median, best = statistics.median(samples[name]), min(samples[name])
        report.rows.append(Row(name, median * 1e6, best * 1e6, ratio, target, ratio if target else None))
    return report
