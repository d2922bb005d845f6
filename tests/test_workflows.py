"""The workflows on GitHub: nothing they run can change under its name, and none holds more rights than it needs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github" / "workflows").glob("*.yml"))


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
