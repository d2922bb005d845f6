"""What these tests share: the folder's scripts, imported as they import each other, and the dashboards as committed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards"
SOURCE = ROOT / "flowcore_otel" / "dashboards"
BOARDS = ("overview", "workflow", "store")

sys.path.insert(0, str(DASHBOARDS))


def board(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text("utf-8"))
    return loaded


def read_yaml(text: str) -> Any:
    """yaml.safe_load, with the parser in C where there is one: it needs a tenth of the time."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@pytest.fixture(params=BOARDS)
def committed(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each of the dashboards, a fresh copy."""
    return board(request.param)
