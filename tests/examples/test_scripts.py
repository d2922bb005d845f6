"""Every example runs as its docstring says and prints what `examples/expected/` holds.

Two things are left out of the comparison: measured durations (`in 12.3 ms` or `in 1.2 s` reads `in <time>`, unless it is a
planned wait: `next in 20 ms`) and run ids (32 hex digits read `<run id>`). To accept what the examples print now: `python tests/examples/test_scripts.py`, then look at the diff.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def printed_by(script: Path) -> str:
    """What the script prints, durations and run ids left out."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, script], capture_output=True, env=environment, timeout=300, check=False, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    assert (
        re.sub(r"^row: [\d,]+ of [\d,]+ runs, .*\n", "", result.stderr, flags=re.MULTILINE) == ""
    )  # batch.py's progress
    timeless = re.sub(r"(?<!next) in \d+(\.\d+)?(e-\d+)? m?s\b", " in <time>", result.stdout)
    return re.sub(r"\b[0-9a-f]{32}\b", "<run id>", timeless)


def expected(script: Path) -> Path:
    return EXAMPLES / "expected" / f"{script.stem}.txt"


QUICK = [pytest.param(one, marks=pytest.mark.full) if one.stem == "batch" else one for one in SCRIPTS]


@pytest.mark.parametrize("script", QUICK, ids=lambda script: script.stem)
def test_example_prints_what_is_expected_of_it(script: Path) -> None:
    assert printed_by(script) == expected(script).read_text("utf-8")


def test_a_smaller_batch_loses_and_doubles_no_row_either(tmp_path: Path) -> None:
    text = (EXAMPLES / "batch.py").read_text("utf-8")
    for large, small in (
        ("ROWS = 10_000\n", "ROWS = 1_000\n"),
        ("dies_after = 4000", "dies_after = 400"),
        ("4000", "400"),
    ):
        assert large in text
        text = text.replace(large, small)
    script = tmp_path / "batch.py"
    script.write_text(text, "utf-8")
    first, replayed, ended, booked = printed_by(script).splitlines()
    assert first == "The first start died of signal 9. The second one:"
    assert re.search("had ended and were replayed$", replayed)
    assert ended == "  1 rows failed, 999 succeeded"
    assert re.fullmatch(r"  999 bookings of ([\d,]+) in all; the rows say \1", booked)


def test_nothing_is_expected_of_an_example_that_is_gone() -> None:
    assert [path.stem for path in sorted((EXAMPLES / "expected").iterdir())] == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_docstring_says_how_to_run_it(script: Path) -> None:
    assert f"    python examples/{script.name}\n" in script.read_text("utf-8")


if __name__ == "__main__":
    for one in SCRIPTS:
        expected(one).write_text(printed_by(one), "utf-8")
