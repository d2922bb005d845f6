"""What every test shares."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest

# No deadlines: they measure the machine, not the code. In CI a failing example is printed so that it can be replayed.
hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "home")

_TESTS: Final = Path(__file__).parent
MEASURED: Final = [_TESTS / "core", _TESTS / "durable" / "test_programs.py", _TESTS / "simulator" / "test_crashes.py"]
"""Whose tests must cover every branch of the programs. Elsewhere, measuring that would cost twice the time, for nothing."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("_cov"):
        for item in items:
            if not any(item.path.is_relative_to(folder) for folder in MEASURED):
                item.add_marker("no_cover")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, Any]:
    """What a test prints may hold a lone surrogate, which no report can carry from one process to another."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
