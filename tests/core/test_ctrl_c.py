"""Ctrl-C in the thread that called Engine.run (semantics 8), at every moment at which Python may deliver it."""

import dis
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import flowcore
from flowcore import Backoff, Context, Engine, IdempotencyHeld, Retry, Status, StepCancelled, Workflow
from flowcore.events import SKIP_RUN, BackoffStarted, RunRequested, RunStarted
from flowcore.stores import MemoryStore

from .conftest import PATIENCE, Gate, Ledger, notes, until

Share = Callable[[Iterable[int]], Iterable[int]]
"""the moments that a test takes: see tests/conftest.py"""
OURS = (str(Path(flowcore.__file__).parent), __file__)
DELIVERS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}
"""The instructions after which CPython looks for signals."""


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class Strike:
    """While entered: sends SIGINT to this thread, or does `what`, at the n-th moment at which it could come out of the blue.

    Those moments are counted, so n goes from 1 up to where `struck` stays empty.
    """

    def __init__(self, moment: int, what: Callable[[], None] = interrupt) -> None:
        self.struck = ""
        self._what = what
        self._left = moment
        self._last: tuple[FrameType, int] | None = None
        self._before = sys.gettrace()

    def __enter__(self) -> Self:
        gc.disable()  # finalizers that happen to run here are not what is tested
        self._before = sys.gettrace()  # of a tool that measures coverage
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        gc.enable()

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        self._last = None
        if self.struck or not frame.f_code.co_filename.startswith(OURS) or frame.f_code.co_name == "__exit__":
            return None
        frame.f_trace_opcodes = True
        if self._delivers(frame, frame.f_lasti):  # the beginning of a function is no instruction to a tracer
            self._moment(frame)
        return self._traced

    def _traced(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.struck:
            return None
        if event == "opcode":
            last, self._last = self._last, (frame, frame.f_lasti)
            if last is not None and last[0] is frame and self._delivers(frame, last[1]):
                self._moment(frame)
        elif event != "line":
            self._last = None
        return self._traced

    def _moment(self, frame: FrameType) -> None:
        self._left -= 1
        if not self._left:
            self.struck = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            self._what()

    @staticmethod
    def _delivers(frame: FrameType, index: int) -> bool:
        code = frame.f_code.co_code
        name = dis.opname[code[index]]
        return name in DELIVERS and (name != "RESUME" or code[index + 1] < 2)


@pytest.fixture(autouse=True)
def _sigint() -> Iterator[None]:
    """Tests start with Python's own handler, whatever the one before left behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def saga(ledger: Ledger, *, fails: bool) -> Workflow:
    wf = Workflow("saga")
    a = ledger.add(wf, "a")
    b = ledger.add(wf, "b", depends_on=a)
    ledger.add(wf, "c", depends_on=b, raises=ValueError("c") if fails else None, undoable=False)
    return wf


def declines(event: Any) -> Any:
    """A hook that wants to know no more of a run, as a TracingHook of a run that is not sampled."""
    return SKIP_RUN if type(event) is RunRequested else None


def aftermath(store: MemoryStore, engine: Engine, ledger: Ledger) -> Iterator[str]:
    """What is not as it should be after an interrupted run."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield "SIGINT was not given back"
        signal.signal(signal.SIGINT, signal.default_int_handler)
    records = store.list_runs()
    if any(record.status == Status.RUNNING for record in records):
        yield "the key is stuck"
    standing = {name: number for name, number in ledger.standing.items() if name != "c"}
    if any(number < -1 for number in standing.values()):
        yield f"undone twice: {ledger}"
    succeeded = set(ledger) >= {"a", "b", "c"} and not any(entry.startswith("-") for entry in ledger)
    held = any(record.held for record in records)
    if any(number > 0 for number in standing.values()) and not succeeded and not held:
        yield f"effects are left standing: {ledger}"
    if engine._live:
        yield "the engine cannot be closed: it believes that the run goes on"
    else:
        engine.close()


@pytest.mark.parametrize("fails", [False, True], ids=["a run that succeeds", "a run that fails"])
@pytest.mark.parametrize("key", [None, "k"], ids=["no key", "a key"])
@pytest.mark.parametrize(
    "hooks", [(), (lambda event: None,), (declines,)], ids=["no hooks", "hooks", "a hook declines"]
)
def test_one_ctrl_c_at_any_moment_is_raised_and_leaves_nothing_half_done(
    fails: bool, key: str | None, hooks: tuple[Any, ...], share: Share
) -> None:
    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1)):
        ledger, store = Ledger(), MemoryStore()
        wf, raised = saga(ledger, fails=fails), None
        engine = Engine(store=store, hooks=hooks, workflows=[wf])
        strike = Strike(moment)
        try:
            with strike:
                engine.run(wf, idempotency_key=key)
        except BaseException as error:  # noqa: BLE001 - judged below
            raised = error
        if not strike.struck:
            engine.close()
            break
        found = list(aftermath(store, engine, ledger))
        if not isinstance(raised, KeyboardInterrupt):
            found.append(f"raised {raised!r} instead of KeyboardInterrupt")
        problems.extend(f"{strike.struck}: {problem}" for problem in found)
    assert moment > 25
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["no hooks", "hooks"])
def test_a_cancel_from_another_thread_at_any_moment_leaves_nothing_half_done(
    hooks: tuple[Any, ...], share: Share
) -> None:
    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1)):
        ledger, store = Ledger(), MemoryStore()
        engine = Engine(store=store, hooks=hooks)

        def cancel(engine: Engine = engine) -> None:
            def elsewhere() -> None:
                for x in list(engine._live):
                    engine.cancel(x.run_id)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join(0.01)  # it waits for the run's lock where the run has that just now

        strike = Strike(moment, cancel)
        with suppress(StepCancelled), strike:
            engine.run(saga(ledger, fails=False))
        problems.extend(f"{strike.struck}: {problem}" for problem in aftermath(store, engine, ledger))
        if not strike.struck:
            break
    assert moment > 25
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


@pytest.mark.parametrize("hooks", [(), ([].append,), (declines,)], ids=["no hooks", "hooks", "a hook declines"])
def test_a_handler_of_the_users_own_that_raises_at_any_moment_has_undone_what_was_done(
    hooks: tuple[Any, ...], share: Share
) -> None:
    def leaves(number: int, frame: FrameType | None) -> None:
        raise SystemExit

    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1)):
        ledger = Ledger()
        wf = saga(ledger, fails=False)
        engine = Engine(hooks=hooks, workflows=[wf])
        strike = Strike(moment)
        signal.signal(signal.SIGINT, leaves)
        with suppress(SystemExit), strike:
            engine.run(wf)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not strike.struck:
            engine.close()
            break
        problems.extend(f"{strike.struck}: {problem}" for problem in aftermath(MemoryStore(), engine, ledger))
    assert moment > 25
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


@pytest.mark.parametrize("key", [None, "k"], ids=["no key", "a key"])
@pytest.mark.parametrize(
    "hooks", [(), (lambda event: None,), (declines,)], ids=["no hooks", "hooks", "a hook declines"]
)
def test_a_second_ctrl_c_at_any_moment_leaves_the_key_free_or_held(
    key: str | None, hooks: tuple[Any, ...], share: Share
) -> None:
    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1)):
        ledger, store = Ledger(), MemoryStore()
        engine, wf, raised = Engine(store=store, hooks=hooks), saga(ledger, fails=False), None
        strike = Strike(moment)

        def first(ctx: Context, strike: Strike = strike) -> None:
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                strike.__enter__()  # from here on, moments count

        wf.add_step("first", first, depends_on="c")
        try:
            try:
                engine.run(wf, idempotency_key=key)
            finally:
                strike.__exit__()
        except BaseException as error:  # noqa: BLE001 - judged below
            raised = error
        if not strike.struck:
            engine.close()
            break
        found = list(aftermath(store, engine, ledger))
        if not isinstance(raised, KeyboardInterrupt):
            found.append(f"raised {raised!r} instead of KeyboardInterrupt")
        problems.extend(f"{strike.struck}: {problem}" for problem in found)
    assert moment > 20
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


@pytest.fixture
def untraced() -> Iterator[None]:
    """No tracer in this thread: coverage's takes a lock of its own, which an interrupt in its midst leaves taken."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see kill()
def test_real_signals_at_random_moments_of_many_small_runs() -> None:
    """After each Ctrl-C every run has either succeeded or been undone, and no key is stuck."""
    chance, done = random.Random(7), Ledger()

    def do(name: str) -> Callable[[Context], None]:
        return lambda ctx: done.append(f"{name}{ctx['n']}")

    def undo(name: str) -> Callable[[Context], None]:
        return lambda ctx: done.append(f"-{name}{ctx['n']}")

    wf = Workflow("tight")
    wf.add_step("a", do("a"), compensate=undo("a"))
    wf.add_step("b", do("b"), depends_on="a", compensate=undo("b"))
    store = MemoryStore()
    main = threading.get_ident()
    with Engine(store=store) as engine:
        number = 0
        for _ in range(60):
            seen = threading.Event()

            def kill(seen: threading.Event = seen, delay: float = chance.uniform(0, 0.002)) -> None:
                # Python drops a KeyboardInterrupt that strikes in a finalizer, of other tests' garbage for one.
                time.sleep(delay)
                signal.pthread_kill(main, signal.SIGINT)
                while not seen.wait(2):
                    signal.pthread_kill(main, signal.SIGINT)

            killer = threading.Thread(target=kill)
            try:
                killer.start()
                while True:
                    number += 1
                    engine.run(wf, {"n": number}, idempotency_key=f"k{number}" if number % 2 else None)
            except KeyboardInterrupt:
                seen.set()
            killer.join()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert not [record for record in store.list_runs() if record.status == Status.RUNNING]
    standing = done.standing
    for n in range(1, number + 1):
        a, b = standing.pop(f"a{n}", 0), standing.pop(f"b{n}", 0)
        assert (a, b) == (1, 1) or (a <= 0 and b <= 0), (n, a, b)
    assert number > 60


def test_ctrl_c_in_a_step_undoes_and_is_raised_with_a_note(ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=lambda ctx: signal.raise_signal(signal.SIGINT))
    ledger.add(wf, "c", depends_on="b")
    with Engine() as engine, pytest.raises(KeyboardInterrupt) as caught:
        engine.run(wf)
    assert ledger == ["a", "-b", "-a"]
    assert "failed at step 'b' after 1 attempt; undone: 'b', 'a'" in notes(caught.value)


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["no hooks", "hooks"])
def test_ctrl_c_while_the_caller_waits_gives_running_steps_grace(ledger: Ledger, hooks: Any) -> None:
    wf, waits = Workflow("w"), Gate()

    def elsewhere(ctx: Context) -> None:
        waits.wait()
        time.sleep(0.01)  # until the caller really sleeps: CPython itself loses signals on the threshold for a while
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: ctx.cancelled)

    ledger.add(wf, "elsewhere", first=elsewhere, timeout=PATIENCE)  # a limit: it runs on a thread of the pool
    ledger.add(wf, "here", first=lambda ctx: waits.set())
    ledger.add(wf, "never", depends_on=["elsewhere", "here"])
    with Engine(hooks=hooks) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(wf)
    assert sorted(ledger) == ["-elsewhere", "-here", "elsewhere", "here"]


def test_ctrl_c_during_a_backoff_ends_the_run(ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"), retry=Retry(2, Backoff.fixed(3600)))

    def strikes(event: Any) -> None:
        if type(event) is BackoffStarted:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()

    with Engine(hooks=[strikes]) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(wf)
    assert ledger == ["a", "b", "-a"]


def test_a_second_ctrl_c_stops_undoing_and_the_key_is_held(ledger: Ledger) -> None:
    wf, store = Workflow("w"), MemoryStore()

    def undo(ctx: Context) -> None:
        signal.raise_signal(signal.SIGINT)
        ledger.append("not reached")

    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: 1, depends_on="a", compensate=undo)
    wf.add_step("c", lambda ctx: signal.raise_signal(signal.SIGINT), depends_on="b")
    with Engine(store=store) as engine:
        with pytest.raises(KeyboardInterrupt) as caught:
            engine.run(wf, idempotency_key="k")
        assert ledger == ["a"]
        assert "could not undo 'b'" in notes(caught.value)
        assert "the undo of step 'a' was not started" in notes(caught.value)
        with pytest.raises(IdempotencyHeld):
            engine.run(wf, idempotency_key="k")


def test_a_first_ctrl_c_during_an_undo_waits_until_everything_is_undone(ledger: Ledger) -> None:
    wf = Workflow("w")

    def undo(ctx: Context) -> None:
        signal.raise_signal(signal.SIGINT)
        ledger.append("-b")

    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: 1, depends_on="a", compensate=undo)
    wf.add_step("c", lambda ctx: 1 / 0, depends_on="b")
    with Engine() as engine, pytest.raises(KeyboardInterrupt) as caught:
        engine.run(wf)
    assert ledger == ["a", "-b", "-a"]
    assert isinstance(caught.value.__cause__ or caught.value.__context__, ZeroDivisionError)


def test_a_handler_of_the_users_own_is_left_alone(ledger: Ledger) -> None:
    seen: list[int] = []
    mine = lambda number, frame: seen.append(number)  # noqa: E731 - compared below
    signal.signal(signal.SIGINT, mine)
    wf = Workflow("w")
    ledger.add(wf, "a", first=lambda ctx: signal.raise_signal(signal.SIGINT))
    with Engine(hooks=[lambda event: None]) as engine:
        assert engine.run(wf).status is Status.SUCCESS
    assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_other_threads_leave_sigint_alone(ledger: Ledger) -> None:
    before = signal.getsignal(signal.SIGINT)
    wf = Workflow("w")
    seen: list[object] = []
    ledger.add(wf, "a", first=lambda ctx: seen.append(signal.getsignal(signal.SIGINT)))
    with Engine(hooks=[lambda event: None]) as engine:
        thread = threading.Thread(target=engine.run, args=(wf,))
        thread.start()
        thread.join()
    assert seen == [before]


# -- in a process of its own -------------------------------------------------------------------------------------------


def process(code: str, *signals: tuple[str, float]) -> "subprocess.CompletedProcess[str]":
    """Run `code`; send a SIGINT whenever one of the lines awaited has been printed, after so many seconds."""
    seen: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(flowcore.__file__).parent.parent,
    ) as child:
        try:
            for line, pause in signals:
                while not seen or seen[-1].strip() != line:
                    seen.append(child.stdout.readline())
                    assert seen[-1], (seen, child.communicate(timeout=PATIENCE)[1])
                time.sleep(pause)
                child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    return subprocess.CompletedProcess([], child.returncode, "".join(seen) + out, err)


SLEEPER = """
    import time
    from flowcore import Engine, Workflow

    wf = Workflow("sleeper")
    wf.add_step("a", lambda ctx: print("did a"), compensate=lambda ctx: print("undid a"))

    def undo(ctx):
        print("undoing b")
        time.sleep({undo})
        print("undid b")

    def sleeps(ctx):
        print("sleeps")
        time.sleep(60)

    wf.add_step("b", sleeps, depends_on="a", compensate=undo)
    Engine().run(wf, idempotency_key="k")
"""


def test_ctrl_c_once_in_a_real_process_undoes_and_ends_it() -> None:
    done = process(SLEEPER.format(undo=0.1), ("sleeps", 0.05))
    assert done.stdout.split("\n")[:-1] == ["did a", "sleeps", "undoing b", "undid b", "undid a"]
    assert "KeyboardInterrupt" in done.stderr
    assert "undone: 'b', 'a'" in done.stderr
    assert done.returncode == -signal.SIGINT


def test_ctrl_c_twice_in_a_real_process_stops_undoing() -> None:
    began = time.monotonic()
    done = process(SLEEPER.format(undo=60), ("sleeps", 0.05), ("undoing b", 0.05))
    assert done.stdout.split("\n")[:-1] == ["did a", "sleeps", "undoing b"]
    assert "could not undo 'b'" in done.stderr
    assert "could not undo 'a'" in done.stderr
    assert done.returncode == -signal.SIGINT
    assert time.monotonic() - began < 30


def test_an_interpreter_that_exits_lets_current_steps_finish_and_starts_no_more() -> None:
    began = time.monotonic()
    done = process("""
        import threading, time
        from flowcore import Engine, Workflow

        started = threading.Event()
        wf = Workflow("in flight")

        def first(ctx):
            started.set()
            time.sleep(0.2)
            print("first is over")

        wf.add_step("first", first)
        wf.add_step("second", lambda ctx: print("second"), depends_on="first")
        future = Engine().submit(wf)
        started.wait()
        print("main is over")
        """)
    assert done.stdout.split("\n")[:-1] == ["main is over", "first is over"]
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 15


def test_an_interpreter_that_exits_waits_for_a_step_at_most_grace() -> None:
    began = time.monotonic()
    done = process("""
        import threading, time
        from flowcore import Engine, Workflow

        started = threading.Event()
        wf = Workflow("stuck")
        wf.add_step("stuck", lambda ctx: (started.set(), time.sleep(60)))
        engine = Engine(grace=0.1)
        future = engine.submit(wf)
        started.wait()
        """)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 15


def test_an_engine_with_runs_in_flight_may_be_forgotten() -> None:
    done = process("""
        from concurrent.futures import wait
        from flowcore import Engine, Workflow

        wf = Workflow("w")
        wf.add_step("a", lambda ctx: 1)
        for _ in range(20):
            engine = Engine()
            futures = [engine.submit(wf) for _ in range(20)]
        assert all(future.result(10)["a"] == 1 for future in futures)
        print("done")
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("answer", [None, SKIP_RUN], ids=["watched", "skipped"])
def test_ctrl_c_in_a_step_is_raised_in_it_also_where_hooks_listen_or_have_listened(ledger: Ledger, answer: Any) -> None:
    def struck(ctx: Context) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)
        except KeyboardInterrupt:
            ledger.append("struck")
            raise

    def listens(event: Any) -> Any:
        return answer if type(event) is RunStarted else None

    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=struck)
    ledger.add(wf, "c", depends_on="b")
    with Engine(hooks=[listens]) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(wf)
    assert ledger == ["a", "struck", "-b", "-a"]
