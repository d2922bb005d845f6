"""The workflows on GitHub: nothing they run can change under its name, and none holds more rights than it needs."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def loosely_pinned(text: str) -> list[str]:
    """The actions that are not named by a commit, with the version that it is."""
    uses = [line.strip() for line in text.splitlines() if re.match(r"\s*-? ?uses:", line)]
    return [line for line in uses if not re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)]


def checkouts(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from (step for step in job["steps"] if "checkout" in step.get("uses", ""))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_only_what_it_names_by_commit(path: Path) -> None:
    assert loosely_pinned(path.read_text(encoding="utf-8")) == []


def test_a_tag_or_a_branch_is_no_commit() -> None:
    assert loosely_pinned("- uses: actions/checkout@v4\n- uses: a/b@main\n") == [
        "- uses: actions/checkout@v4",
        "- uses: a/b@main",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_says_why(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    rights = [job.get("permissions", {}) for job in workflow["jobs"].values()]
    assert all(right.get("contents", "read") == "read" for right in rights)
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_checkout_leaves_no_credentials_behind(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(step["with"]["persist-credentials"] is False for step in checkouts(workflow))


def test_the_tools_are_locked_with_checksums() -> None:
    lock = (ROOT / ".ci" / "tools.lock").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"(?m)^(?=[^\s#])", lock) if not entry.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.!+-]+ ", entry) for entry in entries)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    pinned = {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.!+-]+) ", lock)}
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for text in [*groups["lint"], *(entry for entry in groups["tools"] if isinstance(entry, str))]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text
