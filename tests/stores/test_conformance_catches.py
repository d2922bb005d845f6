"""Tests of the suite for stores: it catches each of many broken stores, by the rule that the store breaks."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase

from flowcore.testing import StoreConformance
from flowcore.testing.conformance.machine import MadeUpHistories
from flowcore.testing.conformance.rules import RULES
from tests.stores import broken_stores
from tests.stores.broken_stores import BROKEN

SUITE = Path(sys.modules[StoreConformance.__module__].__file__).parent
NO_REPORT = [*(f"-pno:{name}" for name in ("logging", "unraisableexception", "threadexception")), "--tb=native"]
"""Options of a session that only says which rule fails first. Collected garbage, logs and quoted source lines would take
a third of its time."""


class Listener:
    """A pytest plugin that notes the first failure of a test run, and how many tests passed."""

    def __init__(self) -> None:
        self.message, self.passed = "", 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed and not self.message:
            self.message = report.longreprtext


def run(node: str, *arguments: str) -> Listener:
    """Run tests in a separate pytest session, up to the first failure."""
    listener = Listener()
    options = ["-x", "-q", "--noconftest", "-c", os.devnull, "--import-mode=importlib", "-W", "error"]
    options += ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:cov"]
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(MadeUpHistories, "phases", (Phase.generate,))  # A failing history need not be shortened here.
        pytest.main([node, *options, *arguments], plugins=[listener])
    return listener


@pytest.mark.share
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_is_caught_by_the_rule_it_breaks(name: str) -> None:
    found = run(f"{broken_stores.__file__}::Test{name}", *NO_REPORT).message
    assert found, f"{name} passed the suite"
    assert any(f"[{rule}]" in found for rule in BROKEN[name].rule.split()), found


@pytest.mark.parametrize(
    "name",
    [
        "TakesARepeatedClaimForAnother",
        "RemembersTheFingerprintAfterRelease",
        "BeginsEachGenerationAtFenceOne",
        "GivesATakenRunANewId",
        "RenewsWhateverItIsAsked",
        "WritesAfterTheEnd",
        "IgnoresTheLastChanges",
    ],
)
def test_the_state_machine_alone_catches_it_too(name: str) -> None:
    found = run(f"{broken_stores.__file__}::Test{name}", "-k", "no_history", *NO_REPORT)
    assert "[model]" in found.message
    assert "state = Histories" in found.message  # The message has the history that led to the failure.


def test_every_rule_is_tested_and_every_tested_rule_is_written_down() -> None:
    texts = [file.read_text(encoding="utf-8") for file in SUITE.glob("*.py") if file.name != "rules.py"]
    named = {rule for text in texts for rule in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text)}
    assert set(RULES) <= named
    tested = r'(?:broken|refuses|unchanged)\(\s*"([^"]*)"|self\.refused\(\w+, "([^"]*)"|, "([a-z-]+)"\)$'
    used = {rule for text in texts for found in re.findall(tested, text, re.MULTILINE) for rule in found if rule}
    assert {rule for rule in used if "-" in rule} <= set(RULES)


def test_three_lines_are_enough(tmp_path: Path) -> None:
    mine = tmp_path / "test_mine.py"
    mine.write_text(
        """
from flowcore.stores import MemoryStore
from flowcore.testing import StoreConformance

class TestMyStore(StoreConformance):
    def make_store(self):
        return MemoryStore()
"""
    )
    found = run(str(mine))
    assert found.message == ""
    assert found.passed > 300


def test_a_test_class_without_a_store_learns_what_is_missing(tmp_path: Path) -> None:
    mine = tmp_path / "test_nothing.py"
    mine.write_text("from flowcore.testing import StoreConformance\nclass TestMyStore(StoreConformance): ...\n")
    assert "TestMyStore must define make_store(self), which returns the store to test." in run(str(mine)).message


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_without_pytest_or_hypothesis_only_the_suite_is_missing(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from flowcore.testing import simulate, StoreConformance"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: StoreConformance needs pytest and hypothesis: pip install pytest hypothesis."


def test_an_unknown_name_of_flowcore_testing_is_an_attribute_error() -> None:
    import flowcore.testing as module

    with pytest.raises(AttributeError, match=r"module 'flowcore\.testing' has no attribute 'nothing'"):
        _ = module.nothing
