"""Draws a dashboard with real data, on Grafana's grid: for those without Grafana, for CI and for documents.

    python dashboards/render.py dashboards/overview.json --prometheus http://localhost:9090 -o overview.png

Needs matplotlib. It is no Grafana: it draws the kinds of panels that are on our dashboards, with the options that we use.
"""

import argparse
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from drawing.asking import Asking, PrometheusError
from drawing.frame import Frame
from drawing.looks import CANVAS
from drawing.panels import draw
from matplotlib.figure import Figure
from PIL import Image

Json = dict[str, Any]

COLUMN, LINE, GAP, DPI = 52, 34, 6, 100  # pixels of a unit of the grid, between panels, and in an inch
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def render(board: Json, asking: Asking) -> Image.Image:
    """The whole dashboard. Raises PrometheusError."""
    width = 24 * COLUMN + 2 * GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * LINE + 2 * GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=CANVAS)
    asking.annotate(board)
    for panel in board["panels"]:
        at = panel["gridPos"]
        frame = Frame(
            figure, at["x"] * COLUMN + GAP, at["y"] * LINE + GAP, at["w"] * COLUMN - GAP, at["h"] * LINE - GAP
        )
        draw(frame, panel, asking)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    # A quarter of the bytes, and no difference to the eye.
    return Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)


def seconds(text: str) -> float:
    """`90s`, `15m`, `1h`, `7d`."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 90s, 15m, 1h or 7d")
    return int(found[1]) * UNITS[found[2]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws a dashboard with real data.")
    parser.add_argument("dashboard", type=Path, help="such as dashboards/overview.json")
    parser.add_argument("--prometheus", default="http://localhost:9090", help="its address (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the picture to write, a .png")
    parser.add_argument("--last", type=seconds, default="1h", help="how far back, such as 15m (default: %(default)s)")
    parser.add_argument("--until", type=float, help="its end, in seconds since the epoch (default: now)")
    parser.add_argument("--scrape", type=seconds, default="15s", help="between scrapes (default: %(default)s)")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="such as workflow=checkout")
    options = parser.parse_args()
    end = options.until or time.time()
    chosen = dict(pair.split("=", 1) for pair in options.var)
    asking = Asking(options.prometheus, end - options.last, end, options.scrape, chosen)
    try:
        picture = render(json.loads(options.dashboard.read_text("utf-8")), asking)
    except PrometheusError as error:
        print(error, file=sys.stderr)
        return 1
    picture.save(options.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
