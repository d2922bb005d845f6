"""The pictures of README show what the commands show today."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from flowcore.cli.app import Operator

from .pictures import PICTURES, show, story, top

README = Path(__file__).parents[2] / "README.md"


def said(svg: str) -> list[str]:
    """The words of a picture of a terminal, without ids, names of this machine and measured times."""
    texts = [
        (float(text.get("y")), html.unescape("".join(text.itertext())))
        for text in ET.fromstring(svg).iter()
        if text.tag.endswith("}text")
    ]
    lines: dict[float, list[str]] = {}
    for at, text in texts:
        lines.setdefault(at, []).append(text.replace("\xa0", " "))
    words = " ".join(" ".join(parts) for _, parts in sorted(lines.items()))
    words = re.sub(r"\b[0-9a-f]{32}\b|\d[\d.]* ?(?:ms|s|min)\b|\d{4}-\d\d-\d\d \S+|process \d+", "…", words)
    return words.split()


@pytest.mark.parametrize(("name", "draws"), [("top", top), ("show", show)])
def test_the_picture_says_what_the_command_says(
    name: str, draws: Callable[[Operator], Console], tmp_path: Path
) -> None:
    with story(tmp_path) as operator:
        drawn = draws(operator).export_svg(title=f"flowcore {name}", unique_id=f"flowcore-{name}")
    assert said(drawn) == said((PICTURES / f"{name}.svg").read_text("utf-8")), "python -m tests.cli.pictures"


def test_readme_shows_all_pictures() -> None:
    page = README.read_text("utf-8")
    shown = set(re.findall(r"examples/pictures/(\w+\.\w+)", page))
    assert shown == {path.name for path in PICTURES.iterdir()} == {"top.svg", "show.svg", "run.png"}
    assert (PICTURES / "run.png").read_bytes().startswith(b"\x89PNG")
