"""The commands on the stores that `make demo KILL=1` leaves behind, also for a user who may only read. Those that the storm
leaves behind are looked at by the storm itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stores.redis_servers import StartRedis, start_redis

from .left_behind import complaints, reader_of

__all__ = ["start_redis"]  # a fixture

DEMO = Path(__file__).parents[2] / "examples" / "service" / "demo.py"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.full)])
def test_every_command_works_on_what_a_killed_demo_leaves(kind: str, tmp_path: Path, start_redis: StartRedis) -> None:
    if kind == "sqlite":
        url = f"sqlite:{tmp_path / 'runs.db'}"
    else:
        url = f"redis://127.0.0.1:{start_redis(port=0, appendonly='always').port}/0"
    few = tmp_path / "few.jsonl"
    few.write_text("".join((DEMO.parent / "orders.jsonl").read_text("utf-8").splitlines(keepends=True)[:40]), "utf-8")
    command = [sys.executable, DEMO, "--kill", f"--store={url}", f"--orders={few}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if kind == "redis":
        assert list(complaints(reader_of(url), may_decide=False)) == []
    assert list(complaints(url)) == []
