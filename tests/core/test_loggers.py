"""Logger, PrintLogger and LoggingHook: method style, lines for people, and stdlib logging."""

import io
import json
import logging
import re
from contextlib import contextmanager
from typing import Any

import pytest

from flowcore import Backoff, Context, Engine, Logger, LoggingHook, PrintLogger, Retry, Status, Workflow
from flowcore.events import (
    CompensationFinished,
    HooksMeasured,
    LeaseLost,
    RunStarted,
    StepFinished,
    StepReady,
    StepStarted,
)
from flowcore.events.records import EVENTS
from flowcore.stores import MemoryStore

from .conftest import Drive, Gate, Ledger, MakeLive, until


def story(ledger: Ledger) -> Workflow:
    """Every kind of line that a run without accidents can have."""
    wf = Workflow("trip")
    ledger.add(wf, "book")
    ledger.add(wf, "mail", depends_on="book", when=lambda ctx: False)
    ledger.add(wf, "hotel", depends_on="mail", undo_raises=LookupError("no such room"))
    ledger.add(wf, "pay", depends_on="hotel", raises=ValueError("declined"), retry=Retry(2, Backoff.fixed(0.001)))
    return wf


LINES = """\
run trip started
  step book started
  step book succeeded in N
  step mail skipped
  step hotel started
  step hotel succeeded in N
  step pay started
  step pay attempt 1 of 2 failed: ValueError: declined; next in N
  step pay failed after 2 attempts: ValueError: declined
  undo of hotel FAILED: LookupError: no such room
  undid book in N
run trip compensation failed: CompensationFailed: N
"""


def plain(text: str) -> str:
    """The text without what differs from run to run."""
    text = re.sub(r"[\d.e-]+ m?s\b", "N", text)
    return re.sub(r"CompensationFailed: .*", "CompensationFailed: N", text)


def test_printlogger_prints_a_line_for_each_thing_worth_knowing(drive: Drive, ledger: Ledger) -> None:
    out = io.StringIO()
    drive(story(ledger), hooks=[PrintLogger(out)], check=False)
    assert plain(out.getvalue()) == LINES


def test_printlogger_prints_to_todays_stdout(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.chain("a").run()
    assert (
        plain(capsys.readouterr().out)
        == "run chain started\n  step a started\n  step a succeeded in N\nrun chain success in N\n"
    )


def test_wf_run_is_silent_with_no_hooks_and_engines_are_silent(
    drive: Drive, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.chain("a").run(hooks=())
    drive(ledger.chain("a"))
    assert capsys.readouterr() == ("", "")


def test_printlogger_says_why_a_run_did_not_start(ledger: Ledger) -> None:
    out, store, wf = io.StringIO(), MemoryStore(), ledger.chain("a")
    with Engine(store=store, hooks=[PrintLogger(out)]) as engine:
        engine.run(wf, idempotency_key="k")
        out.truncate(0)
        out.seek(0)
        engine.run(wf, idempotency_key="k")
        with pytest.raises(Exception, match="cannot be compared"):
            engine.run(wf, {"odd": object()}, idempotency_key="k")
    first, second = out.getvalue().splitlines()
    assert first == "run chain not started: idempotency key replayed"
    assert second.startswith("run chain refused: NotSerializable: A run of workflow 'chain' with an idempotency key")


def test_printlogger_has_a_line_for_what_only_durable_stores_bring(ledger: Ledger) -> None:
    out = io.StringIO()
    logger = PrintLogger(out)
    about = ("trip", "1" * 32, 0.0, {})
    logger(RunStarted(*about, None, 0.0, {}, 2, "2" * 32, {}, int))
    logger(LeaseLost(*about))
    logger(CompensationFinished(*about, "pay", 1, "ship", Status.SUCCESS, 0.5, 1, 0.0, None))
    logger(StepReady(*about, "pay"))
    assert out.getvalue() == (
        "run trip resumed after a crash\nrun trip was taken over by another owner\n  undid pay in 500 ms\n"
    )


def test_printlogger_writes_each_line_at_once(ledger: Ledger, drive: Drive) -> None:
    class Writes(io.StringIO):
        def write(self, text: str, /) -> int:
            written.append(text)
            return len(text)

    written: list[str] = []
    drive(story(ledger), hooks=[PrintLogger(Writes())], check=False)
    assert written
    assert [text for text in written if text and not text.endswith("\n")] == []


def test_printlogger_reports_late_completions(live: MakeLive, gate: Gate) -> None:
    out = io.StringIO()
    wf = Workflow("late")
    wf.add_step("slow", gate, timeout=0.01)
    live(hooks=[PrintLogger(out)], grace=0.01).run(wf, check=False)
    gate.set()
    until(lambda: "abandoned" in out.getvalue())
    assert re.search(r"  step slow completed .* after it was abandoned: success\n", out.getvalue())


def test_a_name_that_would_break_the_line_is_quoted(ledger: Ledger) -> None:
    out = io.StringIO()
    wf = Workflow("two\nlines")
    ledger.add(wf, "nul\0")
    ledger.add(wf, "long" * 100)
    with Engine(hooks=[PrintLogger(out)]) as engine:
        engine.run(wf)
    assert out.getvalue().splitlines()[0] == "run 'two\\nlines' started"
    assert "step 'nul\\x00' started" in out.getvalue()
    assert all(len(line) < 130 for line in out.getvalue().splitlines())


def test_logger_methods_are_reported_by_outcome(drive: Drive, ledger: Ledger) -> None:
    calls: list[str] = []

    class Mine(Logger):
        def step_started(self, event: StepStarted) -> None:
            calls.append(f"started {event.step}")

        def step_succeeded(self, event: StepFinished) -> None:
            calls.append(f"succeeded {event.step}")

        def step_failed(self, event: StepFinished) -> None:
            calls.append(f"failed {event.step}: {event.error}")

    class More(Mine):
        def run_failed(self, event: Any) -> None:
            calls.append(f"run {event.outcome}")

    drive(ledger.chain("a", "b!"), hooks=[More()], check=False)
    assert calls == ["started a", "succeeded a", "started b", "failed b: b failed", "run compensated"]
    assert Mine.wants == frozenset({StepStarted, StepFinished})


def test_a_subclass_gets_what_its_parent_gets_and_what_it_overrides(drive: Drive, ledger: Ledger) -> None:
    class Quiet(PrintLogger):
        """Overrides no method of an event."""

    class Filtered(PrintLogger):
        def __call__(self, event: Any, /) -> object:
            return super().__call__(event) if isinstance(event, CompensationFinished) else None

    calls: list[str] = []

    class Counting(PrintLogger):
        def step_ready(self, event: StepReady) -> None:
            calls.append(f"ready {event.step}")

        def run_failed(self, event: Any) -> None:
            calls.append(f"run {event.outcome}")

    quiet, filtered, counting = (Quiet(io.StringIO()), Filtered(io.StringIO()), Counting(io.StringIO()))
    drive(story(ledger), hooks=[quiet, filtered, counting], check=False)
    texts = [plain(hook._file.getvalue()) for hook in (quiet, filtered, counting)]
    assert texts[0] == texts[2] == LINES
    assert texts[1] == "  undo of hotel FAILED: LookupError: no such room\n  undid book in N\n"
    assert calls == [*(f"ready {name}" for name in ("book", "mail", "hotel", "pay")), "run compensation_failed"]


def test_a_logging_hook_can_be_derived_from(drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Mine(LoggingHook):
        def step_failed(self, event: StepFinished) -> None:
            calls.append(event.step)

    class Same(Mine):
        """Overrides nothing more."""

    for level in (logging.INFO, logging.CRITICAL):  # a method is called whether or not the line is written
        caplog.clear()
        with caplog.at_level(level, "flowcore.run"):
            drive(story(ledger), hooks=[Same()], check=False)
        assert len(caplog.records) == (len(LINES.splitlines()) if level == logging.INFO else 0)
    assert calls == ["pay", "pay"]


def test_a_logger_that_overrides_only_call_gets_every_event(drive: Drive, ledger: Ledger) -> None:
    class Collects(Logger):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def __call__(self, event: Any, /) -> None:
            self.seen.append(event)

    mine, plainly = Collects(), list[Any]()
    drive(ledger.chain("a", "b!"), hooks=[mine, plainly.append], check=False)
    assert mine.seen == plainly
    assert Collects.wants == EVENTS - {HooksMeasured}


def test_every_event_has_a_method_on_logger_which_does_nothing(drive: Drive, ledger: Ledger) -> None:
    assert set(Logger.METHODS) == EVENTS
    for names in Logger.METHODS.values():
        for name in names:
            assert getattr(Logger(), name)(None) is None

    class Everything(Logger):
        wants = EVENTS

    drive(story(ledger), hooks=[Everything()], check=False)


def test_a_scope_answered_by_a_method_is_entered(drive: Drive, ledger: Ledger) -> None:
    entered: list[str] = []

    class Scoped(Logger):
        @contextmanager
        def step_started(self, event: StepStarted) -> Any:
            entered.append(event.step)
            yield
            entered.append("left")

    drive(ledger.chain("a"), hooks=[Scoped()])
    assert entered == ["a", "left"]


def test_logginghook_levels_and_ids(drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flowcore.run"):
        run = drive(story(ledger), hooks=[LoggingHook()], check=False)
    assert plain("\n".join(record.getMessage() for record in caplog.records) + "\n") == LINES
    levels = {record.getMessage().split(":")[0].strip(): record.levelname for record in caplog.records}
    assert levels["step book started"] == "INFO"
    assert levels["step pay attempt 1 of 2 failed"] == "WARNING"
    assert levels["step pay failed after 2 attempts"] == "WARNING"
    assert levels["undo of hotel FAILED"] == "ERROR"
    assert levels["run trip compensation failed"] == "ERROR"
    retried = next(record for record in caplog.records if "attempt 1" in record.getMessage())
    ids = {name: getattr(retried, name) for name in vars(retried) if name.startswith("flowcore_")}
    assert ids == {
        "flowcore_run_id": run.id,
        "flowcore_workflow": "trip",
        "flowcore_step": "pay",
        "flowcore_attempt": 1,
    }


def test_logginghook_writes_json(drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mine")
    with caplog.at_level(logging.INFO, "mine"):
        run = drive(ledger.chain("a\ud800"), hooks=[LoggingHook(logger, json=True)])
    messages = [json.loads(record.getMessage()) for record in caplog.records]
    assert messages[0] == {
        "event": "RunStarted",
        "message": "run chain started",
        "flowcore_run_id": run.id,
        "flowcore_workflow": "chain",
    }
    assert messages[1]["flowcore_step"] == "a\ud800"


def test_logginghook_says_nothing_below_the_loggers_level(
    drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flowcore.run"):
        drive(ledger.chain("a"), hooks=[LoggingHook()])
        assert not caplog.records
        drive(ledger.chain("a!"), hooks=[LoggingHook()], check=False)
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_percent_sign_in_a_name_is_no_format(drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flowcore.run"):
        drive(ledger.chain("100%s"), hooks=[LoggingHook()])
    assert caplog.records[1].getMessage() == "  step 100%s started"


def test_an_error_that_cannot_be_printed_does_not_hurt(drive: Drive) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def step(ctx: Context) -> None:
        raise Hostile

    out = io.StringIO()
    wf = Workflow("hostile")
    wf.add_step("a", step)
    drive(wf, hooks=[PrintLogger(out)], check=False)
    assert "step a failed: Hostile: (its __str__ raised RuntimeError)" in out.getvalue()


FORGED = "a\nCRITICAL forged\r\x1b[31mred\u2028next\x85\u202eb\x00\ttab\u00a0blank é 😀"


@pytest.mark.parametrize("json", [False, True])
def test_no_message_makes_a_line_of_its_own(caplog: pytest.LogCaptureFixture, json: bool) -> None:
    def fails(ctx: Any) -> None:
        raise ValueError(FORGED)

    wf, out = Workflow("order"), io.StringIO()
    wf.add_step("pay", lambda ctx: 1, compensate=fails)
    wf.add_step("charge", fails, retry=2, depends_on="pay")
    caplog.set_level(logging.DEBUG)
    with Engine(hooks=[LoggingHook(json=json), PrintLogger(out)]) as engine:
        run = engine.run(wf, check=False)
    lines = [record.getMessage() for record in caplog.records if record.name == "flowcore.run"]
    assert len(lines) >= 5
    for text in (*lines, *out.getvalue().split("\n"), *run.explain().split("\n")):
        assert len(text.splitlines()) <= 1
        assert not set(text) & set("\x1b\u2028\x85\u202e\x00\t")
    assert run.to_dict()["steps"]["charge"]["error"]["message"] == FORGED


def test_the_traceback_of_a_hook_makes_no_line_that_looks_like_an_entry(caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: Any) -> None:
        raise ValueError(FORGED)

    with Engine(hooks=[fails]) as engine:
        engine.run(Workflow("empty"))
    (record,) = caplog.records
    first, *rest = logging.Formatter("%(levelname)s %(message)s").format(record).splitlines()
    assert first.startswith("ERROR hook ")
    assert record.funcName == "_log_once"
    assert any("raise ValueError(FORGED)" in line for line in rest)
    assert all(line.startswith("  ") and not set(line) & set("\x1b\u2028\x85\u202e\x00\t") for line in rest)


def test_a_hook_whose_error_cannot_be_formatted_breaks_nothing() -> None:
    class Odd(Exception):
        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise RuntimeError

    def fails(event: Any) -> None:
        raise Odd

    with Engine(hooks=[fails]) as engine:
        assert engine.run(Workflow("empty")).status == "success"


def test_a_terminal_that_is_set_to_ascii_gets_every_line() -> None:
    written = io.BytesIO()
    out = io.TextIOWrapper(written, "ascii")
    wf = Workflow("w")
    wf.add_step("café", lambda ctx: None)
    wf.run(hooks=[PrintLogger(out)])
    out.flush()
    assert [line.split(" in ")[0] for line in written.getvalue().decode("ascii").splitlines()] == [
        "run w started",
        "  step caf\\xe9 started",
        "  step caf\\xe9 succeeded",
        "run w success",
    ]
