"""Documents whose blocks run as printed: Python in order and in one namespace, scripts from their console."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

__all__ = ["elided", "run_as_printed"]

BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def elided(text: str) -> str:
    """Times and run ids, which no two runs share, as an ellipsis. A rate stands only where a batch took over a second."""
    text = re.sub(r"\b[0-9.e+-]+ m?s\b", "… ms", text)
    text = re.sub(r", [0-9,.]+/s$", "", text, flags=re.MULTILINE)
    return re.sub(r"\b[0-9a-f]{32}\b", "…", text)


def in_a_console(text: str) -> str:
    """What a console shows where its commands, the lines with a $, are typed in."""
    shown = ""
    for line in text.splitlines():
        if line.startswith("$ python "):
            command = [sys.executable, "-W", "error", *shlex.split(line)[2:]]
            result = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60, check=False
            )
            shown += f"{line}\n{result.stdout}" + ("Killed\n" if result.returncode == -9 else "")
    return shown


def run_as_printed(document: str, name: str) -> int:
    """Run every block of a document in the current folder, compare what it prints, and return how many blocks there were."""
    namespace: dict[str, object] = {"__name__": name}
    printed = ""
    blocks = BLOCK.findall(document)
    for language, text in blocks:
        script = re.match(r"# (\w+\.py)\n", text)
        if language == "console":
            shown = elided(in_a_console(text))
            assert shown == text, f"{name} says\n{text}and its console showed\n{shown}"
        elif language == "text":
            assert elided(printed) == text, f"{name} says\n{text}and its block printed\n{elided(printed)}"
        elif script is not None:
            Path(script[1]).write_text(text, encoding="utf-8")
        else:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, name, "exec"), namespace)
            printed = out.getvalue()
    return len(blocks)
