"""A process that has as many files open as it may have: it says so, and its leases are renewed all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import os, resource, sys, threading, time
from flowcore import Engine, StoreUnavailable, Workflow
from flowcore.stores import SQLiteStore

path, what = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
files, LEASE = [], 0.4


def open_all():
    try:
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


def close_all():
    while files:
        os.close(files.pop())


def message():
    store = SQLiteStore(path)
    open_all()
    try:
        store.find("k")
    except StoreUnavailable as error:
        close_all()
        print(error)


def leases():
    store, wf = SQLiteStore(path), Workflow("slow")
    seen = []

    def slow(ctx):
        if ctx["warm"]:
            return
        began = time.time()
        time.sleep(4 * LEASE)
        close_all()
        seen.append(store.find("k").expires > began + 3 * LEASE)

    wf.add_step("slow", slow)
    with Engine(store=store, lease=LEASE) as engine:
        engine.run(wf, {"warm": True}, idempotency_key="warm")  # modules are imported, and connections are there
        while any(thread.name == "flowcore-leases" for thread in threading.enumerate()):
            time.sleep(0.05)
        open_all()
        run = engine.run(wf, {"warm": False}, idempotency_key="k", check=False)
        print(run.status, *seen)


{"message": message, "leases": leases}[what]()
"""


def process(path: Path, what: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(path), what], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def test_sqlite_says_that_it_is_the_files_and_not_the_rights(path: Path) -> None:
    assert process(path, "message") == (
        f"{path} cannot be opened (unable to open database file), because this process has as many files open as it may "
        "have. Raise its limit on open files, or close some."
    )


def test_leases_are_renewed(path: Path) -> None:
    assert process(path, "leases") == "success True"
