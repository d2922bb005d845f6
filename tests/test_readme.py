"""What the README shows runs as shown: Python blocks in order and in one namespace, scripts from their console."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowcore.stores import RedisStore

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def elided(text: str) -> str:
    """Times and run ids, which no two runs share, as an ellipsis."""
    text = re.sub(r"\b[0-9.e+-]+ m?s\b", "… ms", text)
    return re.sub(r"\b[0-9a-f]{32}\b", "…", text)


def in_a_console(text: str) -> str:
    """What a console shows where its commands, the lines with a $, are typed in."""
    shown = ""
    for line in text.splitlines():
        if line.startswith("$ python "):
            command = [sys.executable, "-W", "error", *shlex.split(line)[2:]]
            result = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=30, check=False
            )
            shown += f"{line}\n{result.stdout}" + ("Killed\n" if result.returncode == -9 else "")
    return shown


def test_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(README)
    assert len(blocks) >= 12
    namespace: dict[str, object] = {"__name__": "readme"}
    printed = ""
    for language, text in blocks:
        script = re.match(r"# (\w+\.py)\n", text)
        if language == "console":
            assert elided(in_a_console(text)) == text
        elif language == "text":
            assert elided(printed) == text
        elif script is not None:
            Path(script[1]).write_text(text, encoding="utf-8")
        else:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "README.md", "exec"), namespace)
            printed = out.getvalue()


def test_the_rights_of_a_redis_user_are_those_that_the_store_lists() -> None:
    (shown,) = re.findall(r"^```acl\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    listed = (RedisStore.__doc__ or "").partition("and for `doctor()`")[0]

    assert set(shown.split()) == {"~{flowcore:*", *re.findall(r"(?<!\S)\+\S+", listed)}


@pytest.mark.parametrize("line", re.findall(r"`(pip install [^`]*)`", README))
def test_what_the_readme_installs_is_there(line: str) -> None:
    """pip finds the project, and each extra; what they depend on is left out, so that no index is asked."""
    offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", *shlex.split(line), *offline]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120, check=False)

    assert result.returncode == 0, result.stderr
    assert "Would install flowcore" in result.stdout
    assert "does not provide the extra" not in result.stderr


def test_the_groups_that_the_readme_names_are_there() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]

    assert {"bench"} == set(re.findall(r"the dependency group `(\w+)`", README)) <= groups.keys()
