"""Draws the pictures that are committed beside the dashboards, from a synthetic day with one incident: `make dashboards`."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "dashboards"))

from days.evaluate import Archive, firing  # noqa: E402 - the path has just been set
from days.fleet import Samples  # noqa: E402
from days.stories import HOUR, shop  # noqa: E402
from drawing.asking import Asking  # noqa: E402
from render import render  # noqa: E402

from .test_days import serve, shipped  # noqa: E402

HOURS = 32
"""simulated: the six that are shown, and the same of the day before"""
SHOWN = 3 * HOUR
CHOSEN = {"overview": {}, "workflow": {"workflow": "checkout"}, "store": {}}


def main() -> int:
    promtool = shutil.which("promtool")
    if promtool is None:
        print("There is no promtool here, so the pictures stay as they are.", file=sys.stderr)
        return 0
    # Half an hour after the partner was back.
    end = int(time.time()) // (15 * 60) * 15 * 60 - 15 * 60
    samples: Samples = {}
    began = shop("shop", end, samples, rich=True, hours=HOURS, ago=50)
    with tempfile.TemporaryDirectory(prefix="flowcore-pictures-") as scratch:
        archive = Archive(Path(scratch), promtool, serve)
        archive.add(samples)
        archive.record(shipped("recording"), [(end - 6 * HOUR, end, 60)])
        with archive.served() as query:
            alerts = firing(query, shipped("alerts"), (end - 6 * HOUR, end, 60))
        archive.add(_as_series(alerts, end))
        with archive.served() as query:
            for name, chosen in CHOSEN.items():
                board = json.loads((ROOT / "dashboards" / f"{name}.json").read_text("utf-8"))
                asking = Asking(query.url, end - SHOWN, began + 28 * 60, 60, {"job": "shop", **chosen})
                path = ROOT / "dashboards" / f"{name}.png"
                render(board, asking).save(path, optimize=True)
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")
    return 0


def _as_series(alerts: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[int]], end: int) -> Samples:
    """What Prometheus writes of alerts that fire: from their beginning to the end of the picture."""
    made: Samples = {}
    for (name, severity, labels), times in alerts.items():
        wanted = dict(labels) | {"alertname": name, "alertstate": "firing", "severity": severity}
        made["ALERTS", tuple(sorted(wanted.items()))] = [(at, 1.0) for at in range(times[0], end, 60)]
    return made


if __name__ == "__main__":
    sys.exit(main())
