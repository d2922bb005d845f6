"""Writes the dashboards, the rules, the runbook and the tables of README.md beside this file, with the addresses of compose.yaml.

    python dashboards/build.py            # the files beside this one
    python dashboards/build.py --check    # only say whether they are up to date

`python -m flowcore_otel.dashboards --help` writes them for your own runbook, Grafana and traces.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from contents import README, readme

from flowcore_otel.dashboards import Options
from flowcore_otel.dashboards.__main__ import main
from flowcore_otel.dashboards.queries import Source

HERE = Path(__file__).parent
OPTIONS = Options(runbook="http://localhost:9090/user/RUNBOOK.md", grafana="http://localhost:3000")
"""where compose.yaml has them"""


def options(source: Source) -> Options:
    """The same for metrics that come another way."""
    return dataclasses.replace(OPTIONS, source=source)


if __name__ == "__main__":
    addresses = [f"--runbook={OPTIONS.runbook}", f"--grafana={OPTIONS.grafana}"]
    code = main([f"--out={HERE}", *addresses, *sys.argv[1:]])
    if readme() != README.read_text(encoding="utf-8"):
        print(f"README.md: {'not up to date' if '--check' in sys.argv else 'written'}")
        if "--check" in sys.argv:
            code = 1
        else:
            README.write_text(readme(), encoding="utf-8")
    sys.exit(code)
