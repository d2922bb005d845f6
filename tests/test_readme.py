"""What the README shows runs as shown: Python blocks in order and in one namespace, scripts from their console."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowcore.stores import RedisStore
from tests.documents import run_as_printed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_as_printed(README, "readme") >= 5


def test_the_rights_of_a_redis_user_are_those_that_the_store_lists() -> None:
    guide = (ROOT / "examples" / "guide" / "durable.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```acl\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
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


def test_the_groups_that_the_guide_names_are_there() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]

    guide = (ROOT / "examples" / "guide" / "benchmarks.md").read_text(encoding="utf-8")
    assert {"bench"} == set(re.findall(r"the dependency group `(\w+)`", guide)) <= groups.keys()
