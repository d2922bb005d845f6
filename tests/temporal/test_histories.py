"""Runs that an earlier release began on Temporal continue with the code of today: their histories are replayed."""

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "histories"
RELEASES = sorted(path for path in FOLDER.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def histories() -> Iterator[Any]:
    pytest.importorskip("temporalio")
    sys.path.insert(0, str(FOLDER.parent))
    yield importlib.import_module("histories")
    sys.path.pop(0)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
@pytest.mark.parametrize("seed", ["0", pytest.param("1", marks=pytest.mark.full), "4711"])
def test_histories_of_every_release_replay_whatever_the_hash_seed(histories: Any, release: Path, seed: str) -> None:
    command = [sys.executable, str(FOLDER.parent / "histories.py"), "replay", str(release)]
    environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    names = done.stdout.splitlines()
    assert set(names) == {path.name.removesuffix(".json.gz") for path in release.iterdir()}
    assert len(names) >= 12


def test_a_history_of_other_steps_is_refused(histories: Any) -> None:
    others = histories.workflows()
    changed = histories.Workflow("success")
    for name in ("mail", "gift", "pay", "book"):
        changed.add_step(name, lambda ctx: 1)
    others[0] = changed
    with pytest.raises(RuntimeError, match="was started with a different step graph"):
        asyncio.run(histories.replay(RELEASES[-1], others))
