"""The options, hooks and fixtures that all tests share."""

import itertools
import os
import signal
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import hypothesis
import pytest

from .collecting import Coverage, FirstAlone, FrozenHeap
from .limits import SilenceLimit, TestLimit, own_group

# There are no deadlines, because they measure the machine, not the code. In CI a failing example is printed, so that it
# can be replayed.
hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "home")

T = TypeVar("T")
_TESTS: Final = Path(__file__).parent
MEASURED: Final = [
    _TESTS / "core",
    *(_TESTS / "durable" / f"test_{name}.py" for name in ("programs", "recovery", "waiting_for_the_store", "in_place")),
    *(
        _TESTS / "durable" / f"test_{name}.py"
        for name in (
            "changed_graph",
            "recovery_warns",
            "recovery_rounds",
            "lease_thread",
            "own_errors",
            "waits",
            "waits_beside",
            "long_backoffs",
            "submitted",
        )
    ),
    *(_TESTS / "simulator" / f"test_{name}.py" for name in ("crashes", "rollbacks", "waits")),
]
"""The folders and files whose tests must cover every branch of the programs. Coverage is not measured elsewhere,
because that would double the time of those tests."""
LONGEST: Final = [
    _TESTS / f"{folder}/test_{name}.py"
    for folder, names in {
        "stores": ("redis_conformance", "conformance_catches", "redis_hostile"),
        "schedules": ("processes", "engines"),
        "dashboards": ("live", "rules", "days"),
        "durable": ("crash_matrix", "waits", "outages", "fleet", "storm", "fan_out", "long_backoffs"),
        "examples": ("demo", "waiting", "deploys", "killing", "service"),
        "temporal": ("kills", "runs", "limits", "waits", "demo", "table"),
        "simulator": ("crashes", "crash_mutants", "agreement"),
        "core": ("ctrl_c", "poison", "executor"),
        ".": ("newcomer", "guide", "packaging", "limits"),
    }.items()
    for name in names
]
"""Files that take longer than ten seconds. They begin first; at the end, one process would work alone on them."""
SHARE: Final = 3
"""A quick proof takes one of so many cases, where cases are alike."""
WAITING: Final = {"durable", "examples", "schedules", "temporal"}
"""Folders whose tests mostly wait, for leases, servers and processes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--proof",
        choices=["quick", "full"],
        default="quick",
        help="how many seeds, mutants and crashes the long proofs take: enough for each change, or all (make proof)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background processes with SIGINT ignored, and the processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The servers are small, and Go would spend a quarter of their time on their garbage.
    os.environ |= {"GOGC": "400", "GOMEMLIMIT": "400MiB"}
    stderr = os.dup(2)  # Later, pytest captures what is written to descriptor 2.
    config.pluginmanager.register(TestLimit(stderr))
    if hasattr(config, "workerinput"):
        own_group()
        config.pluginmanager.register(FirstAlone())
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(SilenceLimit(stderr))
        return
    config.pluginmanager.register(FrozenHeap())
    if config.pluginmanager.hasplugin("_cov"):
        pytest_cov, worker = config.pluginmanager.getplugin("_cov"), hasattr(config, "workerinput")
        config.pluginmanager.register(Coverage(pytest_cov, _measures, worker=worker))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use two processes for each core, because many tests wait for servers and leases."""
    return 2 * (os.cpu_count() or 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with `@pytest.mark.proof(quick=n, full=m, each=k)` their `seeds`: n or m in all, k in each case."""
    mark = metafunc.definition.get_closest_marker("proof")
    if mark is not None:
        count, each = mark.kwargs[metafunc.config.getoption("proof")], mark.kwargs["each"]
        slices = [range(first, min(first + each, count)) for first in range(0, count, each)]
        metafunc.parametrize("seeds", slices, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


def _places(files: Iterable[Path]) -> dict[Path, float]:
    """Return the place of each file in the order of the tests. The LONGEST come first. After them, files that mostly
    wait are spread among those that mostly compute, so that the machine is never busy with only one kind."""
    places: dict[Path, float] = {path.resolve(): place - len(LONGEST) for place, path in enumerate(LONGEST)}
    groups: tuple[list[Path], list[Path]] = ([], [])
    for path in files:
        if path not in places:
            groups[path.parent.name in WAITING].append(path)
    for group in groups:
        places.update((path, place / len(group)) for place, path in enumerate(group))
    return places


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("proof") == "quick":
        config.hook.pytest_deselected(items=[item for item in items if _is_left_out(item)])
        items[:] = [item for item in items if not _is_left_out(item)]
    places = _places(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: places[item.path])


def _is_left_out(item: pytest.Item) -> bool:
    """Whether a quick proof leaves this test out. Of the tests with `@pytest.mark.share`, the name decides."""
    if item.get_closest_marker("full") is not None:
        return True
    return item.get_closest_marker("share") is not None and zlib.crc32(item.nodeid.encode()) % SHARE != 0


def _measures(item: pytest.Item) -> bool:
    """Whether coverage is measured in a test. In the simulator, the first seeds of each proof are enough."""
    if item.path.parent.name == "simulator" and (item.get_closest_marker("proof") is None or "[0-" not in item.name):
        return False
    return any(item.path.is_relative_to(folder) for folder in MEASURED)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long proofs run in full length."""
    return bool(request.config.getoption("proof") == "full")


@pytest.fixture
def share(request: pytest.FixtureRequest, full: bool) -> Callable[[Iterable[T]], Iterator[T]]:
    """A function that selects from the cases of a test: all of them in a full proof, else one of SHARE, counted
    over all loops of the test. The name of the test decides which ones."""
    numbers = itertools.count(zlib.crc32(request.node.name.encode()))
    return lambda cases: (case for case in cases if full or next(numbers) % SHARE == 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, Any]:
    """Escape lone surrogates in the output of a test, because no report can carry them from one process to another."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
