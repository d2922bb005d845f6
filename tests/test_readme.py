"""Every Python block of the README runs, in order and in one namespace, and prints what the block after it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def elided(text: str) -> str:
    """Times and run ids, which no two runs share, as an ellipsis."""
    text = re.sub(r"\b[0-9.e+-]+ m?s\b", "… ms", text)
    return re.sub(r"\b[0-9a-f]{32}\b", "…", text)


def test_the_readme_runs_as_printed() -> None:
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    namespace: dict[str, object] = {"__name__": "readme"}
    printed = ""
    for language, text in blocks:
        if language == "text":
            assert elided(printed) == text
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "README.md", "exec"), namespace)
        printed = out.getvalue()
