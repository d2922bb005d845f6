"""ProgressHook shows runs on a terminal or as plain lines, and never slows or breaks one."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest

from flowcore import Context, Engine, ProgressHook, Status, Workflow
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, MakeLive, until


class Terminal:
    """A terminal of 100 columns; `text()` is what it has been sent, without control sequences, once it is closed."""

    def __init__(self) -> None:
        self._reader, writer = pty.openpty()
        self.file: TextIO = os.fdopen(writer, "w")
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self._reader, 65536):
                self._chunks.append(chunk)
        except OSError:  # the other end is closed
            return

    def text(self) -> str:
        self.file.close()
        self._thread.join(PATIENCE)
        os.close(self._reader)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(self._chunks).decode())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def rows() -> Workflow:
    wf = Workflow("row")

    @wf.step
    def book(ctx: Context) -> None:
        if ctx["n"] % 10 == 3:
            raise ValueError

    return wf


def nightly() -> Workflow:
    wf = Workflow("nightly")
    for name, after in (("extract", ()), ("transform", "extract"), ("load", "transform")):
        wf.add_step(name, lambda ctx: None, depends_on=after)
    return wf


def test_many_runs_are_counted_in_plain_lines(live: MakeLive) -> None:
    file = io.StringIO()
    with ProgressHook(total=40, file=file) as progress:
        one, wf = live(hooks=[progress]), rows()
        for run in [one.start(wf, {"n": n}, check=False) for n in range(40)]:
            run.result(PATIENCE)
    assert re.fullmatch(r"row: 40 of 40 runs, 4 failed(, [\d,]+/s)?\n", file.getvalue())


def test_a_single_run_is_shown_by_its_steps(live: MakeLive) -> None:
    file = io.StringIO()
    with ProgressHook(file=file) as progress:
        live(hooks=[progress]).run(nightly())
    assert file.getvalue() == "nightly: 3 of 3 steps, success\n"


def test_plain_lines_come_every_few_seconds_and_say_what_is_in_flight() -> None:
    file, goes_on, wf = io.StringIO(), threading.Event(), Workflow("slow")
    wf.add_step("load", lambda ctx: goes_on.wait(PATIENCE))
    with ProgressHook(file=file, every=0.01) as progress, Engine(hooks=[progress]) as engine:
        future = engine.submit(wf)
        until(lambda: "slow: 0 of 1 steps, load\n" in file.getvalue())
        others = [engine.submit(wf) for _ in range(2)]
        until(lambda: "slow: 0 runs, 3 in flight" in file.getvalue())
        goes_on.set()
        for one in (future, *others):
            one.result(PATIENCE)
    assert "slow: 3 runs" in file.getvalue().splitlines()[-1]


def test_replayed_and_refused_runs_count_too(tmp_path: Path) -> None:
    file, wf = io.StringIO(), rows()
    with ProgressHook(file=file) as progress, Engine(store=SQLiteStore(tmp_path / "db"), hooks=[progress]) as engine:
        list(engine.map(wf, [{"n": 1}, {"n": 1}, {"n": 1}], key=lambda item: "k", concurrency=1))
        with pytest.raises(Exception, match="different initial values"):
            engine.run(wf, {"n": 2}, idempotency_key="k")
    assert file.getvalue().startswith("row: 4 runs, 1 refused, 2 replayed")


def test_on_a_terminal_there_are_bars(terminal: Terminal) -> None:
    with ProgressHook(total=40, file=terminal.file) as progress, Engine(hooks=[progress]) as engine:
        list(engine.map(rows(), [{"n": n} for n in range(40)]))
    text = terminal.text()
    assert re.search(r"row ━+ 40/40 runs 4 failed", text)


def test_on_a_terminal_a_single_run_is_a_bar_of_its_steps(terminal: Terminal) -> None:
    with ProgressHook(file=terminal.file) as progress:
        Engine(hooks=[progress]).run(nightly())
    assert re.search(r"nightly ━+ 3/3 steps success", terminal.text())


def test_without_rich_a_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flowcore.events.progress_bars", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with ProgressHook(file=terminal.file) as progress:
        Engine(hooks=[progress]).run(nightly())
    assert "nightly: 3 of 3 steps, success" in terminal.text()


class Stuck(io.StringIO):
    """A pipe that no process reads from."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.drained = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.drained.wait(PATIENCE)
        return super().write(text)


def test_a_pipe_that_is_full_delays_no_run() -> None:
    file, gate, wf = Stuck(), threading.Event(), Workflow("w")
    wf.add_step("waits", lambda ctx: gate.wait(PATIENCE))
    progress = ProgressHook(file=file, every=0.001)
    with Engine(hooks=[progress]) as engine:
        first = engine.submit(wf)
        assert file.reached.wait(PATIENCE)
        gate.set()
        first.result(PATIENCE)
        assert engine.run(wf).status == "success"  # while the drawing thread hangs
        file.drained.set()
    progress.close()
    assert "w: 2 runs" in file.getvalue().splitlines()[-1]


def test_a_file_that_is_closed_breaks_nothing() -> None:
    file = io.StringIO()
    file.close()
    progress = ProgressHook(file=file)
    engine = Engine(hooks=[progress])
    assert engine.run(nightly()).status == "success"
    progress.close()
    assert engine.run(nightly()).status == "success"
    progress.close()


def test_what_comes_after_a_pause_is_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowcore.events.progress._IDLE", 0.0)
    file = io.StringIO()
    progress = ProgressHook(file=file)
    engine = Engine(hooks=[progress])
    for number in (1, 2):
        engine.run(nightly())
        until(partial(_says, file, "nightly: 3 of 3 steps, success\n" * number))
        until(lambda: not threads())


def _says(file: io.StringIO, text: str) -> bool:
    return file.getvalue() == text


def test_the_child_of_a_fork_draws_its_own_runs() -> None:
    file = io.StringIO()
    reader, writer = os.pipe()
    with ProgressHook(file=file) as progress:
        Engine(hooks=[progress]).run(nightly())
        child = os.fork()
        if child == 0:
            said = io.StringIO()
            progress._file = said
            Engine(hooks=[progress]).run(nightly())
            progress.close()
            os.write(writer, said.getvalue().encode())
            os._exit(0)
        os.close(writer)
        assert os.read(reader, 1000) == b"nightly: 3 of 3 steps, success\n"
        os.waitpid(child, 0)
        os.close(reader)


def test_a_program_that_ends_at_once_shows_its_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from flowcore import Engine, ProgressHook, Workflow\n"
        "wf = Workflow('w'); wf.add_step('a', print)\n"
        "Engine(hooks=[ProgressHook()]).run(wf)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "w: 1 of 1 steps, success\n"


def test_steps_that_end_at_once_are_all_counted() -> None:
    class Ended:
        """A StepFinished that lets another thread in where its outcome is read."""

        workflow, step = "w", "a"

        @property
        def outcome(self) -> Status:
            return Status.SUCCESS

    event: Any = Ended()
    progress = ProgressHook(file=io.StringIO())
    progress._run_started(event)

    def end_steps() -> None:
        for _ in range(3000):
            progress._step_finished(event)

    workers = [threading.Thread(target=end_steps) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert progress._tallies["w"].steps_done == 4 * 3000
    progress.close()


def threads() -> list[Any]:
    return [thread for thread in threading.enumerate() if thread.name == "flowcore-progress"]


def test_runs_are_counted_and_not_drawn_where_they_happen() -> None:
    """The share of a run's time that the hook takes is that of its counting: no more than a few calls for each event."""
    calls: list[str] = []
    progress = ProgressHook(file=io.StringIO())
    with progress:
        engine, wf = Engine(hooks=[progress]), rows()
        engine.run(wf, {"n": 1})
        engine.run(wf, {"n": 1})
        me = threading.get_ident()

        def profile(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and threading.get_ident() == me and "events/progress" in frame.f_code.co_filename:
                calls.append(frame.f_code.co_name)

        sys.setprofile(profile)
        try:
            engine.run(wf, {"n": 1})
        finally:
            sys.setprofile(None)
    assert sorted(set(calls)) == [
        "_run_finished",
        "_run_started",
        "_step_finished",
        "_step_started",
        "_tally",
        "alone",
        "end",
    ]
    assert len(calls) <= 10
