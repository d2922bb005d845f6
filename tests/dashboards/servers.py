"""Where the real programs are: on PATH, or where `.ci/servers` unpacks them. Missing: skip at home, fail in CI."""

import os
import shutil
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / ".venv-servers" / "usr" / "bin"

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus"}
"""program -> Debian's package of it; the others are in prometheus-alertmanager"""


def program(name: str) -> str:
    """The program's path; skips the test where there is none, and fails it in CI."""
    found = shutil.which(name) or shutil.which(name, path=UNPACKED)
    if found is None:
        missing = f"{name} is not here: Debian's package {PACKAGES.get(name, 'prometheus-alertmanager')} has it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found
