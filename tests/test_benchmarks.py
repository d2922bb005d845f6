"""The benchmarks run: those that take moments, with few rounds. What they measure is no matter here."""

import subprocess
import sys
from pathlib import Path

from .stores.redis_servers import find_redis

ROOT = Path(__file__).parent.parent
QUICK = ("W1", "W3", "W5", "W6", "logger", "redis", "sqlite")


def test_the_benchmarks_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *QUICK, "--quick", "--no-peers"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured = {line.partition(":")[0] for line in done.stdout.splitlines() if line.partition(":")[0] in QUICK}
    assert measured == set(QUICK)
    assert ("Redis by hand, async" in done.stdout) is (find_redis() is not None)
