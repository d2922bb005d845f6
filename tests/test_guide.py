"""The guide: its blocks run as printed, and its links lead somewhere."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowcore import AsyncEngine, Engine, Retry, Workflow
from flowcore.step import StepOptions
from flowcore.stores import AsyncRedisStore, MemoryStore, RedisStore, SQLiteStore
from tests.documents import run_as_printed

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "examples" / "guide").glob("*.md"))
DOCUMENTS = [
    *GUIDE,
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("flowcore*/*.md")),
    *sorted(ROOT.glob("dashboards/*.md")),
]


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    """A page may set logging up, as Celery does for its worker; the tests after it find what was there before."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_a_page_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert run_as_printed(text, page.stem) >= text.count("```python")


def dead_links(document: Path) -> list[str]:
    """The links of a document to files that are not there."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    return [link for link in files if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_no_link_is_dead(document: Path) -> None:
    assert dead_links(document) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[a](there.md) [b](page.md#x) [c](https://x.example) [d](#here)")
    assert dead_links(tmp_path / "page.md") == ["there.md"]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_no_heading_stands_without_text(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "code", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^#+ .*\n+(?=#)|^#+ .*\n*\Z", text.replace("\n# ", "\n## "), re.MULTILINE)


OPTIONS: dict[str, list[Callable[..., object]]] = {
    "Workflow": [Workflow.__init__],
    "Step": [Workflow.add_step],
    "Retry": [Retry.__init__],
    "Engine and AsyncEngine": [Engine.__init__, AsyncEngine.__init__],
    "A call: run, submit": [Engine.run, Engine.submit, AsyncEngine.run, AsyncEngine.submit],
    "A batch: map": [Engine.map, AsyncEngine.map],
    "Stores": [MemoryStore.__init__, SQLiteStore.__init__, RedisStore.__init__, AsyncRedisStore.__init__],
}


def parameters(function: Callable[..., object]) -> set[str]:
    """The options of a function, those that it takes as one TypedDict among them."""
    names = set(inspect.signature(function).parameters) - {"self", "fn"}
    if "options" in names:
        names |= set(StepOptions.__annotations__)
    return names - {"options"}


@pytest.mark.parametrize("section", OPTIONS)
def test_every_option_is_in_its_table(section: str) -> None:
    text = (ROOT / "examples" / "guide" / "options.md").read_text(encoding="utf-8")
    table = text.split(f"## {section}\n")[1].partition("\n## ")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted({name for function in OPTIONS[section] for name in parameters(function)})


def test_the_site_is_built_without_a_warning() -> None:
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, str(ROOT / ".ci" / "docs.py")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (ROOT / ".site" / "site" / "examples" / "guide" / "tutorial" / "index.html").is_file()
