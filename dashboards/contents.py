"""What is on each dashboard, as tables of README.md: the rows, which are questions, and their panels.

`python dashboards/build.py` writes them, from the dashboards beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from catalogue import rewritten, table

__all__ = ["BOARDS", "README", "contents", "readme"]

Json = dict[str, Any]

HERE: Final = Path(__file__).parent
README: Final = HERE / "README.md"
BOARDS: Final = ("overview", "workflow", "store")


def contents(board: Json) -> str:
    """The rows of a dashboard, and the titles of their panels."""
    rows: list[tuple[str, list[str]]] = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], []))
        else:
            rows[-1][1].append(panel["title"])
    return table(("row", "its panels"), ((title, " · ".join(panels)) for title, panels in rows))


def readme() -> str:
    """README.md as it should be."""
    text = README.read_text(encoding="utf-8")
    for name in BOARDS:
        board = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
        text = rewritten(text, contents(board), (f"<!-- {name} -->", f"<!-- end of {name} -->"))
    return text
