"""That a run of the tests ends, whatever hangs or dies in it."""

import subprocess
import sys
import threading
from pathlib import Path

from .conftest import LONGEST, MEASURED

ROOT = Path(__file__).parents[1]

CONFTEST = """
import os
import threading
import pytest
from tests.limits import SilenceLimit, TestLimit, own_group

class Impatient(SilenceLimit):
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid):
        super().pytest_runtest_logstart(nodeid)
        if "first" in nodeid:  # Not before: the start may take long where the machine is busy.
            self._silence = SILENCE
            threading.Thread(target=self._watch, daemon=True).start()

def pytest_configure(config):
    stderr = os.dup(2)
    config.pluginmanager.register(TestLimit(stderr, patience=PATIENCE))
    if hasattr(config, "workerinput"):
        own_group()
    else:
        config.pluginmanager.register(Impatient(stderr))
"""
OTHERS = "import pytest\n@pytest.mark.parametrize('number', range(10))\ndef test_other(number): pass\n"


def ended(
    folder: Path, test: str, *options: str, patience: float = 60.0, silence: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """A run of pytest, which is over, with this test and others."""
    limits = CONFTEST.replace("PATIENCE", str(patience)).replace("SILENCE", str(silence))
    (folder / "conftest.py").write_text(limits, "utf-8")
    (folder / "test_first.py").write_text(f"import os, threading, time\ndef test_first():\n    {test}\n", "utf-8")
    for name in ("second", "third"):
        (folder / f"test_{name}.py").write_text(OTHERS, "utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        *options,
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)


def test_a_test_that_hangs_fails_and_the_others_continue(tmp_path: Path) -> None:
    run = ended(tmp_path, "threading.Event().wait()", patience=0.5)
    assert run.returncode == 1
    assert "1 failed, 20 passed" in run.stdout
    assert "The test hangs: it has not ended after 0.5 s" in run.stdout
    assert "test_first.py" in run.stderr  # the stacks


def test_a_process_that_dies_ends_the_run(tmp_path: Path) -> None:
    run = ended(tmp_path, "os._exit(3)", "--numprocesses=2", "--dist=loadfile", "--max-worker-restart=0")
    assert run.returncode == 1
    assert "crashed while running 'test_first.py::test_first'" in run.stdout


def test_a_process_that_dies_and_leaves_a_child_ends_the_run(tmp_path: Path) -> None:
    dies = "threading.Event().wait() if os.fork() == 0 else os._exit(3)"
    options = ("--numprocesses=2", "--dist=loadfile", "--max-worker-restart=0")
    run = ended(tmp_path, dies, *options, silence=3.0)
    assert run.returncode == 3
    assert "The run hangs: no report for 3 s. Tests without an end: test_first.py::test_first." in run.stderr


def test_files_with_an_order_or_a_measure_of_their_own_are_there() -> None:
    assert not [path for path in (*LONGEST, *MEASURED) if not path.exists()]


def test_a_test_whose_coverage_is_not_measured_is_not_traced() -> None:
    """Each test would take twice as long."""
    assert (sys.gettrace(), threading.gettrace()) == (None, None)
