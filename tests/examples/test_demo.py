"""The demo from end to end, as `make demo` runs it: what it prints, how it ends, and that its checks can fail."""

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

import demo

SERVICE = Path(demo.__file__).parent
CHAPTERS = [
    "An order that fails",
    "A replay, and the run that it repeats",
    "Responses to the clients",
    "The ledger",
    "A scrape of /metrics",
    "Where to go next",
]


def run_demo(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, demo.__file__, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8", **environment},
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a whole run of the demo prints."""
    folder = tmp_path_factory.mktemp("demo")
    result = run_demo(folder=folder)

    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert list(folder.iterdir()) == [], "nothing is left behind"
    return result.stdout


def test_demo_shows_its_chapters_in_about_forty_lines(reported: str) -> None:
    lines = reported.splitlines()

    assert [line for line in lines if line.startswith(tuple(CHAPTERS))] == [
        next(line for line in lines if line.startswith(chapter)) for chapter in CHAPTERS
    ]
    assert 36 <= len(lines) <= 56
    assert max(map(len, lines)) <= 120
    assert "\033" not in reported, "no colours unless on a terminal"
    assert "✗ " not in reported.partition("A replay")[2]


def test_timeline_shows_attempts_backoffs_and_undo(reported: str) -> None:
    chapter = reported.partition("An order that fails")[2].partition("\n\n")[0]
    drawn = {line[4:].split()[0]: re.sub(r"[^█▓·◀]", "", line) for line in chapter.splitlines()[2:5]}

    assert "It took " in chapter
    assert "backing off" in chapter
    assert {step: re.sub(r"(.)\1+", r"\1", bars) for step, bars in drawn.items()} == {
        "reserve": "█◀",
        "charge": "█◀",
        "ship": "▓·▓·▓◀",
    }


def test_replay_is_linked_to_another_trace(reported: str) -> None:
    traces = re.findall(r"trace ([0-9a-f]{32})", reported.partition("A replay")[2].partition("Responses to")[0])

    assert len(traces) == len(set(traces)) == 2


def test_outcomes_are_those_of_the_input(reported: str) -> None:
    counts = {name: int(count) for name, count in re.findall(r"^  (\w+) +(\d+)  \d", reported, re.MULTILINE)}

    assert counts == {"done": 260, "replayed": 36, "compensated": 36, "refused": 12}
    assert "✓ all 344 responses are as expected" in reported


def test_every_check_is_passed(reported: str) -> None:
    checks = [line.strip()[2:].split()[0] for line in reported.splitlines() if line.strip().startswith("✓")]

    assert checks == ["all", "money:", "stock:", "no", "the", "its", "its"]


def test_colours_can_be_had_and_refused(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="terminals are a Unix thing")
    seen = {}
    for refused in ("", "1"):
        leader, follower = pty.openpty()
        command = [sys.executable, demo.__file__, f"--orders={_few_orders(tmp_path)}"]
        environment = {**os.environ, "NO_COLOR": refused, "TERM": "xterm"}
        process = subprocess.Popen(command, stdout=follower, env=environment)
        os.close(follower)
        seen[refused] = b""
        try:
            while chunk := os.read(leader, 65536):
                seen[refused] += chunk
        except OSError:  # Linux says EIO where the other end of a terminal is closed
            pass
        os.close(leader)
        process.wait(60)

    assert b"\033[1m" in seen[""]
    assert b"\033" not in seen["1"]


def test_output_without_unicode_is_poor_but_complete(tmp_path: Path) -> None:
    result = run_demo(f"--orders={_few_orders(tmp_path)}", folder=tmp_path, PYTHONIOENCODING="ascii")

    assert (result.returncode, result.stderr) == (0, "")
    assert "? money:" in result.stdout


def test_reader_may_leave_early(tmp_path: Path) -> None:
    command = [sys.executable, demo.__file__, f"--orders={_few_orders(tmp_path)}"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (1, b"")
    assert not list(tmp_path.glob("flowcore-demo-*"))


# -- checks that fail --------------------------------------------------------------------------------------------------


def _few_orders(folder: Path, *kinds: str) -> Path:
    """A file of orders with a few of each kind."""
    wanted = dict.fromkeys(kinds or ("normal", "lost reply", "no carrier", "duplicate"), 4)
    lines = [json.loads(line) for line in (SERVICE / "orders.jsonl").read_text("utf-8").splitlines()]
    repeated = {line["key"] for line in lines if line["kind"] == "duplicate"}
    chosen = []
    for line in lines:
        if wanted.get(line["kind"], 0) > 0 or line["key"] in repeated:
            wanted[line["kind"]] = wanted.get(line["kind"], 0) - 1
            chosen.append(line)
    path = folder / "few.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in chosen), "utf-8")
    return path


def _faulty_service(folder: Path, fault: str) -> Path:
    """A service with a fault planted in it."""
    script = folder / "faulty.py"
    script.write_text(
        f"import sys, uuid\nsys.path.insert(0, {str(SERVICE)!r})\nimport app, ledger, checkout\n{fault}\napp.main()\n"
    )
    return script


DOUBLE_CHARGE = """
charge = ledger.Ledger.charge
ledger.Ledger.charge = lambda self, _, ref, cents: charge(self, uuid.uuid4().hex, ref, cents)
"""


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (DOUBLE_CHARGE, "was charged again while its first charge stood"),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (
                ("ledger.Ledger.refund = lambda *_: 0", "cents, but neither shipped nor refunded"),
                ("ledger.Ledger.release = lambda *_: None", "pieces"),
                ("app.Ledger.note = lambda *_: None", "got 201, not shipped"),
            )
        ),
    ],
    ids=["double charge", "missing refund", "goods kept", "never shipped"],
)
def test_faulty_service_makes_the_demo_fail(tmp_path: Path, fault: str, found: str) -> None:
    result = run_demo(
        f"--orders={_few_orders(tmp_path)}", f"--service={_faulty_service(tmp_path, fault)}", folder=tmp_path
    )

    assert result.returncode == 1
    assert "✗" in result.stdout
    assert found in result.stdout
    assert re.search(r"\d checks? FAILED", result.stdout)
    (kept,) = tmp_path.glob("flowcore-demo-*")
    assert (kept / "ledger.db").exists()


# -- what may go wrong around it ---------------------------------------------------------------------------------------


def test_taken_port_is_reported_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_demo("--port", port, folder=tmp_path)

    assert result.returncode == 1
    assert f"Port {port} cannot be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_service_that_does_not_start_shows_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no licence to sell')")
    result = run_demo(f"--service={script}", folder=tmp_path)

    assert result.returncode == 1
    assert "The service did not start." in result.stderr
    assert "no licence to sell" in result.stderr


def test_service_that_dies_on_the_way_is_reported(tmp_path: Path) -> None:
    fault = "import os\nledger.Ledger.refund = lambda *_: (print('out of memory', flush=True), os._exit(9))"
    result = run_demo(f"--service={_faulty_service(tmp_path, fault)}", folder=tmp_path)

    assert result.returncode == 1
    assert "The service died" in result.stderr
    assert "out of memory" in result.stderr
    assert "Traceback" not in result.stderr


# -- --serve -----------------------------------------------------------------------------------------------------------


@contextmanager
def serving_demo(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo with --serve, once it has told everything."""
    process = subprocess.Popen(
        [sys.executable, demo.__file__, "--serve", f"--orders={_few_orders(folder)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,  # a process group of its own: Ctrl-C goes to the whole group
    )
    with process:
        try:
            assert process.stdout
            yield process, _until(process.stdout, "Ctrl-C ends it.")
        finally:
            process.kill()


def _until(stream: IO[str], end: str) -> str:
    said = ""
    for line in stream:
        said += line
        if end in line:
            break
    assert end in said, said
    return said


def test_serving_demo_prints_a_curl_that_replays_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with serving_demo(tmp_path) as (process, said):
        _, _, url, *options = shlex.split(said[said.index("curl -i") :].partition("\n  Ctrl-C")[0])
        host, _, path = url.removeprefix("http://").partition("/")
        headers = dict(options[n + 1].split(": ") for n, option in enumerate(options) if option == "-H")
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("POST", f"/{path}", options[options.index("-d") + 1], headers)
        response = connection.getresponse()
        response.read()
        replayed = response.status, response.headers["Idempotent-Replayed"]
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read()
        connection.close()
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(20)

    assert replayed == (201, "true")
    assert b"flowcore_run_duration_seconds" in metrics
    assert code == 0
    assert not list(tmp_path.glob("flowcore-demo-*"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(host.partition(":")[2])), timeout=5)


def test_killed_demo_takes_its_service_along(tmp_path: Path) -> None:
    with serving_demo(tmp_path) as (process, said):
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", said)[0])
        process.terminate()
        code = process.wait(20)

    assert code == 143
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
