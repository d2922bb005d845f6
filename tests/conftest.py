"""What every test shares."""

import os
from pathlib import Path
from typing import Final

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
