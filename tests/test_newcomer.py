"""A newcomer walks the README's section on a durable endpoint in a fresh environment, as it is printed."""

import os
import re
import shutil
import socket
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("### A durable endpoint with traces\n")[2]
PATIENCE = 600  # seconds: an index of packages may be slow


def test_the_readme_leads_to_a_durable_endpoint_with_traces(tmp_path: Path) -> None:
    if shutil.which("curl") is None and not os.environ.get("CI"):
        pytest.skip("there is no curl")
    venv.create(tmp_path / "fresh", with_pip=True)
    blocks = dict(re.findall(r"^```(python|shell)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)[:2])
    (tmp_path / "shop.py").write_text(blocks["python"], encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    commands = blocks["shell"].replace("'.[", f"'{ROOT}[").replace(":8000", f":{port}")
    path = f"{tmp_path / 'fresh' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "UVICORN_PORT": str(port), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    script = f"set -e\n{commands}\nkill -INT %1\nwait %1 || true\n"
    shown = subprocess.run(
        ["bash", "-mc", script],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    ).stdout
    for printed in re.findall(r'`(\{"charge".*?\})`', SECTION):
        assert printed in shown, shown
        assert printed.replace("false", "true") in shown, shown
    names = re.findall(r'^    "name": "(.*)",$', shown, re.MULTILINE)
    assert {"run order", "step reserve", "step charge", "idempotency hit order"} <= set(names), shown
    assert (tmp_path / "orders.db").exists()
