"""`make demo STORE=temporal`: the checkout on a Temporal server of its own, with the same checks of its books."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import Temporal

SERVICE = Path(__file__).parents[2] / "examples" / "service"
KINDS = ("normal", "lost reply", "declined", "sold out", "no carrier")


def test_the_demo_runs_on_a_temporal_server_of_its_own(temporal: Temporal, tmp_path: Path) -> None:
    lines = (SERVICE / "orders.jsonl").read_text(encoding="utf-8").splitlines()
    by_kind = {kind: [line for line in lines if json.loads(line)["kind"] == kind][:3] for kind in KINDS}
    orders = tmp_path / "orders.jsonl"
    orders.write_text("\n".join(line for several in by_kind.values() for line in several) + "\n", encoding="utf-8")
    command = [sys.executable, str(SERVICE / "demo.py"), "--store=temporal", f"--orders={orders}"]
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "responses are as expected" in done.stdout
    assert "no order charged twice" in done.stdout
    assert "FAILED" not in done.stdout
