"""The example service, as it is started: what it leaves on the disk is for its owner alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

SERVICE = Path(__file__).parents[2] / "examples" / "service"


def test_the_files_of_the_example_are_for_their_owner_alone(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("ledger.db", "spans.jsonl", "runs.db")]
    command = [
        sys.executable,
        str(SERVICE / "app.py"),
        "--port",
        "0",
        "--ledger",
        str(files[0]),
        "--spans",
        str(files[1]),
    ]
    with subprocess.Popen([*command, "--store", f"sqlite:{files[2]}"], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        try:
            assert service.stdout.readline().startswith("listening on http://127.0.0.1:")
            until = time.monotonic() + 30
            while not files[2].exists() and time.monotonic() < until:  # the store opens after the port
                time.sleep(0.02)
            modes = {file.name: oct(file.stat().st_mode & 0o777) for file in files[:2]}
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate(timeout=30)
    modes |= {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert {"ledger.db", "spans.jsonl", "runs.db"} <= modes.keys()
    assert set(modes.values()) == {"0o600"}
