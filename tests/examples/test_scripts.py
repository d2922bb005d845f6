"""Every example runs as its docstring says and prints what `examples/expected/` holds.

Only durations are left out of the comparison: each `12.3 ms` or `1.2 s` reads `<time>`. To accept what the examples
print now: `python tests/examples/test_scripts.py`, then look at the diff.
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
    """What the script prints, durations left out."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, script], capture_output=True, env=environment, timeout=60, check=False, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return re.sub(r"\b\d+(\.\d+)?(e-\d+)? m?s\b", "<time>", result.stdout)


def expected(script: Path) -> Path:
    return EXAMPLES / "expected" / f"{script.stem}.txt"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_prints_what_is_expected_of_it(script: Path) -> None:
    assert printed_by(script) == expected(script).read_text("utf-8")


def test_nothing_is_expected_of_an_example_that_is_gone() -> None:
    assert [path.stem for path in sorted((EXAMPLES / "expected").iterdir())] == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_docstring_says_how_to_run_it(script: Path) -> None:
    assert f"    python examples/{script.name}\n" in script.read_text("utf-8")


if __name__ == "__main__":
    for one in SCRIPTS:
        expected(one).write_text(printed_by(one), "utf-8")
