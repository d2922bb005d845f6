"""Draws the pictures that are committed beside the dashboards: `make dashboards` runs this. It takes some two minutes."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "dashboards"))

from drawing.asking import Asking  # noqa: E402 - the path has just been set
from render import render  # noqa: E402

from .load import load  # noqa: E402
from .prometheus import EVERY, Prometheus  # noqa: E402

SLICES, PAUSE = 16, 4.0
CHOSEN = {"overview": {}, "workflow": {"workflow": "checkout"}, "store": {}}


def main() -> int:
    binary = shutil.which("prometheus")
    if binary is None:
        print("There is no prometheus here, so the pictures stay as they are.", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="flowcore-pictures-") as scratch:
        folder = Path(scratch)
        with (
            Prometheus(binary, folder / "prometheus") as prometheus,
            load(folder, prometheus, slices=SLICES, pause=PAUSE),
        ):
            for name, chosen in CHOSEN.items():
                board = json.loads((ROOT / "dashboards" / f"{name}.json").read_text("utf-8"))
                asking = Asking(
                    prometheus.url, prometheus.began, prometheus.looked, 2 * EVERY, {"job": "shop", **chosen}
                )
                path = ROOT / "dashboards" / f"{name}.png"
                render(board, asking).save(path, optimize=True)
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
