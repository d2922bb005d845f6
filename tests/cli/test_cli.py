"""The command line, as an operator gives it: against real stores, in a process of its own where that matters."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, Workflow
from flowcore.cli import run
from flowcore.stores import SQLiteStore
from tests.stores.redis_servers import until

Given = Callable[..., tuple[int, str, str]]


def order() -> Workflow:
    """pay, then ship: order 1 is undone, the undo of order 2 fails, order 0 goes well."""
    wf = Workflow("order")

    def refund(ctx: Context) -> None:
        if ctx["n"] == 2:
            raise RuntimeError("the bank is closed")

    def ship(ctx: Context) -> str:
        if ctx["n"]:
            raise ValueError("no such street")
        return "parcel-7"

    pay = wf.add_step("pay", lambda ctx: "secret-card")
    pay.compensate(retry=1)(refund)
    wf.add_step("ship", ship, depends_on="pay")
    return wf


@pytest.fixture
def url(tmp_path: Path) -> str:
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store) as engine:
        wf = order()
        for number in range(3):
            engine.run(wf, {"n": number}, idempotency_key=f"order-{number}", check=False)
    store.close()
    return f"sqlite:{tmp_path / 'runs.db'}"


@pytest.fixture
def flowcore(url: str, capsys: pytest.CaptureFixture[str]) -> Given:
    """Give a command: its exit code, and what it printed."""

    def given(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run(["--store", url, *arguments])
        printed = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), printed.out, printed.err

    return given


def data(answer: tuple[int, str, str]) -> Any:
    assert answer[0] == 0, answer
    return json.loads(answer[1])


def test_ls_lists_held_runs_first(flowcore: Given) -> None:
    runs = data(flowcore("--json", "ls"))["runs"]
    assert [entry["key"] for entry in runs] == ["order-2", "order-1", "order-0"]
    assert runs[0]["held"]
    _, text, _ = flowcore("ls")
    assert text.splitlines()[1].split()[:3] == ["order-2", "order", "held"]


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_ls_shows_every_column_at_any_width_of_the_terminal(
    flowcore: Given, url: str, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    key = "shop:" + "日本" * 30
    with Engine(store=SQLiteStore(url.removeprefix("sqlite:"))) as engine:
        engine.run(order(), {"n": 2}, idempotency_key=key, check=False)
    monkeypatch.setenv("COLUMNS", columns)
    _, text, _ = flowcore("ls")
    heading, *lines = text.splitlines()
    assert heading.split() == ["KEY", "WORKFLOW", "STATE", "AGE", "RUN", "WHY"]
    assert lines[0].startswith(f"{key}  order     held")
    assert all("held" in line and "the bank is closed" in line for line in lines[:2])
    assert lines[1].index("order  ") == heading.index("WORKFLOW")  # one long key leaves the other rows in place


def test_without_a_command_the_help_is_printed(flowcore: Given) -> None:
    code, text, said = flowcore()
    assert (code, said) == (0, "")
    assert text.startswith("Usage: flowcore")
    assert "Commands:\n  cancel " in text


def test_shared_options_may_stand_behind_the_command(flowcore: Given, url: str) -> None:
    assert flowcore("ls", "--json") == flowcore("--json", "ls")
    assert flowcore("ls", "--json", "--store", url) == flowcore("--json", "ls")
    code, _, said = flowcore("ls", "--store", "sqlite:missing.db")
    assert (code, "missing.db" in said) == (2, True)


def test_ls_filters_and_pages(flowcore: Given) -> None:
    first = data(flowcore("--json", "ls", "--status", "success"))
    assert [entry["key"] for entry in first["runs"]] == ["order-0"]
    assert data(flowcore("--json", "ls", "--key", "order-1"))["runs"][0]["key"] == "order-1"
    page = data(flowcore("--json", "ls", "--status", "compensated", "--limit", "1"))
    assert len(page["runs"]) == 1
    assert flowcore("ls", "--workflow", "unknown")[1] == "No run matches.\n"


def test_show_gives_the_story_and_the_commands_for_each_way_on(flowcore: Given) -> None:
    code, text, _ = flowcore("show", "order-2")
    assert code == 0
    assert "held at step 'ship'" in text
    assert "the bank is closed" in text
    assert "flowcore undo order-2 " in text
    assert "flowcore release order-2 " in text
    assert "secret-card" not in text


def test_show_finds_a_run_by_its_id(flowcore: Given) -> None:
    run_id = data(flowcore("--json", "show", "order-1"))["run_id"]
    assert data(flowcore("--json", "show", run_id))["key"] == "order-1"


def test_commands_that_read_take_the_beginning_of_an_id_as_ls_shows_it(flowcore: Given) -> None:
    run_id = data(flowcore("--json", "show", "order-2"))["run_id"]
    assert run_id[:12] in flowcore("ls")[1]
    assert data(flowcore("--json", "show", run_id[:12]))["key"] == "order-2"
    code, _, said = flowcore("undo", run_id[:12], "--yes")  # a mistyped key must not reach another run
    assert code == 1
    assert (
        said
        == f"flowcore: No run has the key or the id '{run_id[:12]}'. To find it by a part of its key, use ls --key.\n"
    )


def test_a_run_is_erased_once_it_was_asked_for(flowcore: Given, url: str) -> None:
    code, _, asked = flowcore("erase", "order-0")
    assert (code != 0, "order-0" in asked) == (True, True)
    assert flowcore("erase", "order-0", "--yes")[0] == 0
    assert "secret-card" not in flowcore("show", "order-0", "--values")[1]
    assert flowcore("erase", "order-2", "--yes")[0] != 0  # it is held
    assert flowcore("erase", "order-2", "--yes", "--force")[0] == 0


def test_values_are_shown_only_if_asked_for(flowcore: Given) -> None:
    assert "secret-card" not in flowcore("--json", "show", "order-0")[1]
    shown = data(flowcore("--json", "show", "order-0", "--values"))
    assert shown["results"]["pay"] == "secret-card"
    assert "secret-card" in flowcore("show", "order-0", "--values")[1]


def test_timeline_and_page_are_drawn_of_a_record(flowcore: Given, tmp_path: Path) -> None:
    code, text, _ = flowcore("timeline", "order-0")
    assert code == 0
    assert "pay" in text
    page = tmp_path / "run.html"
    assert flowcore("html", "order-0", "-o", str(page))[0] == 0
    assert "parcel-7" not in page.read_text(encoding="utf-8")
    assert "<svg" in page.read_text(encoding="utf-8")


def test_a_held_run_is_undone_and_its_decision_recorded(flowcore: Given, url: str) -> None:
    answer = data(flowcore("--json", "undo", "order-2", "--reason", "ticket 7"))
    assert answer["done"] == ["order-2"]
    record = data(flowcore("--json", "show", "order-2"))
    assert record["decision"] == "undo"
    assert record["reason"].startswith("undo by ")
    assert record["reason"].endswith(": ticket 7")


def test_what_loses_something_asks_first(flowcore: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no answer comes
    code, _, said = flowcore("release", "order-2")
    assert code == 4
    assert "Nothing was done." in said
    assert data(flowcore("--json", "show", "order-2"))["held"]
    assert flowcore("release", "order-2", "--yes")[0] == 0
    assert not data(flowcore("--json", "show", "order-2"))["held"]


def test_many_runs_are_counted_before_they_are_touched(flowcore: Given) -> None:
    code, text, said = flowcore("hold", "--workflow", "order", "--dry-run")
    assert (code, text) == (0, "")
    assert said.count("hold 'order-") == 3
    assert not data(flowcore("--json", "show", "order-0"))["held"]
    assert flowcore("hold", "--workflow", "order", "--yes")[0] == 0
    assert data(flowcore("--json", "show", "order-0"))["held"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "nothing"], 1, "nothing"),
        (["resume", "order-0"], 1, "success"),
        (["ls", "--status", "bogus"], 2, "bogus"),
        (["release"], 2, "Name the runs"),
        (["frobnicate"], 2, "frobnicate"),
        (["graph", "no.such:thing"], 2, "cannot be imported"),
        (["graph", "..x:y"], 2, "cannot be imported"),
        (["ls", "--codec", "json:dumps"], 2, "calling 'json:dumps' without arguments raised TypeError"),
        (["ls", "--codec", "codec_of_test:raises"], 2, "raised RuntimeError: no key file"),
        (["ls", "--codec", "codec_of_test:none"], 2, "'codec_of_test:none' is None, not a codec"),
        (["ls", "--codec", "raises_of_test:x"], 2, "cannot be imported (RuntimeError: boom)"),
        (["ls", "--codec", "syntax_of_test:x"], 2, "cannot be imported (SyntaxError"),
        (["ls", "--codec", "exits_of_test:x"], 2, "'exits_of_test:x' cannot be imported (SystemExit: 0)"),
        (
            ["ls", "--codec", "codec_of_test:exits"],
            2,
            "calling 'codec_of_test:exits' without arguments raised SystemExit: 0",
        ),
        (["graph", "exits_of_test:x"], 2, "'exits_of_test:x' cannot be imported (SystemExit: 0)"),
        (["ls", "--store", "redis://[::1"], 2, "not the URL of a store: its host or its port cannot be read"),
        (
            ["ls", "--store", "http://user:" + "hidden" + "@[x"],
            2,
            "not the URL of a store: its host or its port cannot be read",
        ),
        (["ls", "--store", "temporal://localhost:no/ns?task_queue=q"], 2, "not the URL of a store"),
        (["ls", "--store", "redis://user:" + "hidden" + "/#@localhost"], 2, "Percent-encode the special characters"),
        (["ls", "--store", "redis://localhost/0?color=red"], 2, "unexpected keyword argument 'color'"),
        (["ls", "--store", "redis://localhost/orders"], 2, "its path must be the number of a database"),
        (["ls", "--store", "redis://localhost/0/1"], 2, "its path must be the number of a database"),
        (
            ["ls", "--store", "redis://user:12/" + "hidden" + "@localhost"],
            2,
            "its path must be the number of a database",
        ),
        (["ls", "--store", "redis://localhost/0?protocol=7"], 2, "protocol must be either 2 or 3"),
        (["ls", "--store", "redis://localhost/0?retry=3"], 2, "a URL cannot give the option 'retry'"),
        (["ls", "--store", "redis://localhost/0?retry_on_error="], 2, "a URL cannot give the option 'retry_on_error'"),
        (["ls", "--store", "redis://localhost/0?cache_config=x"], 2, "this is not a Redis URL"),
        (["ls", "--store", "redis://localhost/0?socket_timeout=nan"], 2, "socket_timeout must be a number of seconds"),
        (["ls", "--store", "rediss://localhost/0?ssl_cert_reqs=no"], 2, "Invalid SSL Certificate Requirements Flag"),
        (["send", "order-0", "pay", "--json", "[" * 100_000], 2, "nested too deeply"),
    ],
)
def test_an_error_is_one_line_and_has_its_exit_code(
    flowcore: Given,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    (tmp_path / "codec_of_test.py").write_text(
        "from sys import exit\nnone = None\ndef raises():\n    raise RuntimeError('no key file')\ndef exits():\n    exit(0)\n"
    )
    (tmp_path / "exits_of_test.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "raises_of_test.py").write_text("raise RuntimeError('boom')\n")
    (tmp_path / "syntax_of_test.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    given, _, said = flowcore(*arguments)
    assert given == code, said
    assert said.startswith("flowcore: ")
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert "hidden" not in said


@pytest.mark.parametrize("key", ["-k2", "--help", "-- x"])
def test_the_commands_that_show_prints_work_for_a_key_that_looks_like_an_option(
    flowcore: Given, url: str, key: str
) -> None:
    store, wf, asking = SQLiteStore(url.removeprefix("sqlite:"), durability="normal"), Workflow("w"), Workflow("asking")
    wf.add_step("s", lambda ctx: 1 / 0)
    asking.wait("-approved")
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key=key, check=False)
        engine.run(asking, idempotency_key=f"{key}?", until="waiting")
        for name, verbs in ((key, ["resume"]), (f"{key}?", ["send", "undo"])):
            shown = flowcore("show", "--", name)[1]
            commands = [
                shlex.split(line, comments=True) for line in shown.splitlines() if line.startswith("  flowcore ")
            ]
            assert [words[1] for words in commands] == verbs
            for words in commands:
                code, said, _ = flowcore(*("1" if word == "VALUE" else word for word in words[1:]))
                assert code == 0
                assert f"{words[1]} {name!r}" in said
    store.close()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(["--store", f"sqlite:{tmp_path / 'typo.db'}", "ls"])
    assert exit_.value.code == 2
    assert not (tmp_path / "typo.db").exists()
    assert "no SQLite file" in capsys.readouterr().err


def test_without_a_store_the_command_says_how_to_name_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWCORE_STORE", raising=False)
    with pytest.raises(SystemExit) as exit_:
        run(["ls"])
    assert exit_.value.code == 2
    assert "FLOWCORE_STORE" in capsys.readouterr().err


def test_a_redis_that_is_down_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(["--store", "redis://127.0.0.1:1/0", "ls"])
    assert exit_.value.code == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_value_is_sent_to_a_run_that_waits(flowcore: Given, url: str) -> None:
    store, wf = SQLiteStore(url.removeprefix("sqlite:"), durability="normal"), Workflow("approval")
    wf.wait("approved")
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="o 1", until="waiting")
        code, shown, _ = flowcore("show", "o 1")
        assert code == 0
        assert "waits for 'approved'" in shown
        assert "flowcore send 'o 1' approved --json VALUE" in shown
        assert flowcore("send", "o 1", "approved", "--json", "{no")[0] == 2
        assert (
            flowcore("send", "o 1", "approved", "--json", '{"by": "Ann"}', "--id", "7")[1]
            == "send 'o 1' approved: recorded\n"
        )
        code, said, _ = flowcore("send", "o 1", "approved", "--json", "2")
        assert code == 1
        assert "refused: another value was sent before" in said
        assert flowcore("send", "nothing", "approved", "--json", "2")[0] != 0
        assert engine.run(wf, idempotency_key="o 1")["approved"] == {"by": "Ann"}
        assert flowcore("send", "o 1", "missing", "--json", "2")[0] != 0
    store.close()


def test_schedules_are_listed_from_the_store_alone(flowcore: Given, url: str) -> None:
    assert data(flowcore("--json", "schedules")) == {"schedules": []}
    assert "No engine has recorded a schedule" in flowcore("schedules")[1]
    store = SQLiteStore(url.removeprefix("sqlite:"))
    began, wf = threading.Event(), Workflow("settle")
    wf.add_step("a", lambda ctx: began.set())
    with Engine(store=store) as engine:
        engine.schedule(wf, cron="30 2 * * *", timezone="Europe/Berlin", name="nightly [1]")
        engine.schedule(wf, every=1)
        assert began.wait(20)
    with Engine(store=store) as engine:  # a new version
        engine.schedule(wf, cron="45 3 * * *", timezone="Europe/Berlin", name="nightly [1]")
        until(lambda: "45 3" in flowcore("schedules")[1], "the new version's entry")
    store.close()
    nightly, settle = data(flowcore("--json", "schedules"))["schedules"]
    assert (nightly["schedule"], nightly["cron"], nightly["last_fire"]) == ("nightly [1]", "45 3 * * *", None)
    assert (settle["workflow"], settle["every"], settle["last_outcome"]) == ("settle", 1.0, "success")
    assert len(settle["next_fires"]) == 3
    _, text, _ = flowcore("schedules")
    assert "nightly [1]" in text
    assert "every 0:00:01" in text


def test_top_counts_what_is_not_over(flowcore: Given) -> None:
    assert {"workflow": "order", "status": "held", "runs": 1} in data(flowcore("--json", "top"))
    _, text, _ = flowcore("top", "--once")
    assert "order-2" in text


def test_graph_draws_a_workflow_of_a_module(flowcore: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_the_tests.py").write_text(
        "from flowcore import Workflow\nwf = Workflow('shop')\nwf.add_step('a', lambda ctx: 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "Workflow 'shop'" in flowcore("graph", "shop_of_the_tests:wf")[1]
    assert flowcore("graph", "shop_of_the_tests:wf", "--mermaid")[1].startswith("flowchart TD")
    assert flowcore("graph", "shop_of_the_tests:wf", "--dot")[1].startswith("digraph")
    assert flowcore("graph", "shop_of_the_tests:wf", "--svg")[1].startswith("<svg")
    assert flowcore("graph", "shop_of_the_tests:wf", "--run", "order-0")[0] == 2


def test_graph_colours_the_steps_of_a_run(flowcore: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "order_of_the_tests.py").write_text("from tests.cli.test_cli import order\nwf = order()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, drawn, _ = flowcore("graph", "order_of_the_tests:wf", "--svg", "--run", "order-1")
    assert code == 0
    assert 'class="undo undone"' in drawn
    assert 'class="failed"' in drawn


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_it_works_without_a_terminal_and_in_small_encodings(url: str, encoding: str) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "FLOWCORE_STORE": url, "PYTHONUTF8": "0"}
    for arguments in (["ls"], ["show", "order-2"], ["timeline", "order-1"], ["top", "--once"]):
        done = subprocess.run(
            [sys.executable, "-m", "flowcore", *arguments], env=environ, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        assert done.stdout.decode(encoding)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("flowcore sh", ["show"]),
        ("flowcore ls --stat", ["--status"]),
        ("flowcore ls --status h", ["held"]),
        ("flowcore undo --status comp", ["compensated", "compensation_failed"]),
    ],
)
def test_a_shell_completes_commands_options_and_statuses(typed: str, offered: list[str]) -> None:
    words = typed.split()
    script = f"""
        eval "$(_FLOWCORE_COMPLETE=bash_source flowcore)"
        COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}
        _flowcore_completion flowcore
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_the_version_needs_nothing(url: str) -> None:
    done = subprocess.run([sys.executable, "-m", "flowcore", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "flowcore 0.1.0\n"


def test_no_reason_steers_the_terminal_of_an_operator(flowcore: Given) -> None:
    assert flowcore("hold", "order-0", "--reason", "a\nb\x1b[2J")[0] == 0
    for shown in (flowcore("ls", "--status", "held"), flowcore("show", "order-0")):
        assert shown[0] == 0
        assert r"a\nb\x1b[2J" in shown[1]
        assert "\x1b" not in shown[1]


def test_a_record_that_cannot_be_read_is_released_by_force(flowcore: Given, url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as database, database:
        database.execute("UPDATE runs SET status = 'odd' WHERE key = 'order-1'")
    code, _, said = flowcore("release", "--yes", "order-1")
    assert (code, "has the unknown value 'odd'" in said) == (1, True)
    assert flowcore("release", "--yes", "--force", "order-1")[:2] == (0, "release 'order-1': recorded\n")
    assert "No run has the key" in flowcore("show", "order-1")[2]


def test_a_closed_input_confirms_nothing(flowcore: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as in a process that a shell starts with <&-
    code, _, said = flowcore("release", "order-0")
    assert (code, said.splitlines()[-1]) == (4, "release 1 run? [y/N]: flowcore: Nothing was done.")
    sys.stdin.close()


def test_the_class_of_a_codec_names_the_codec(flowcore: Given) -> None:
    code, text, _ = flowcore("--codec", "flowcore.stores:PydanticCodec", "show", "order-0", "--values")
    assert (code, "result of 'pay' = 'secret-card'" in text) == (0, True)


def test_a_run_that_is_named_twice_is_decided_once(flowcore: Given) -> None:
    run_id = data(flowcore("--json", "show", "order-2"))["run_id"]
    _, text, said = flowcore("undo", "order-2", run_id, "order-2")
    assert (text, said) == ("undo 'order-2': recorded\n", "")


def test_a_timeline_has_an_end_on_a_terminal_that_claims_to_have_none(
    flowcore: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "99999999")
    code, text, _ = flowcore("timeline", "order-0")
    assert (code, max(map(len, text.splitlines())) <= 1_000) == (0, True)


def test_a_closed_output_is_no_error(flowcore: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["show", "order-0"], ["ls"], ["top", "--once"]):
        monkeypatch.setattr(sys, "stdout", None)  # as in a process that a shell starts with >&-
        assert flowcore(*command)[0] == 0
        sys.stdout.close()
