"""The wheel that users get: what is in it, and what it says where an extra is missing."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the hatchling that is installed: no network needed."""
    into = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", into, ROOT)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(zipfile.ZipFile(wheel).read("flowcore-0.1.0.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has flowcore and nothing else."""
    environment = tmp_path_factory.mktemp("bare")
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    # Isolated and elsewhere, so that the checkout cannot be imported by accident.
    command = [str(python), "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=python.parent)


def error_of(python: Path, code: str) -> str:
    """The one line of the ImportError that the code ends with."""
    done = run(python, code)
    assert done.returncode == 1, done.stdout + done.stderr
    error = done.stderr[done.stderr.rindex("\nImportError: ") :].strip()
    assert len(error.splitlines()) == 1, error
    return error


def test_wheel_holds_both_packages_and_says_that_they_are_typed(files: set[str]) -> None:
    expected = {"flowcore/__init__.py", "flowcore/py.typed", "flowcore_otel/__init__.py", "flowcore_otel/py.typed"}
    assert expected <= files


def test_wheel_holds_the_licence(files: set[str]) -> None:
    assert "flowcore-0.1.0.dist-info/licenses/LICENSE" in files


def test_wheel_holds_nothing_else(files: set[str]) -> None:
    assert {name.split("/")[0] for name in files} == {"flowcore", "flowcore_otel", "flowcore-0.1.0.dist-info"}


def test_wheel_holds_every_module_of_the_checkout(files: set[str]) -> None:
    packages = ROOT / "flowcore", ROOT / "flowcore_otel"
    modules = {str(path.relative_to(ROOT)) for package in packages for path in package.rglob("*.py")}
    assert {name for name in files if name.endswith(".py")} == modules


def test_metadata_offers_the_extras(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "redis",
        "otel",
        "prometheus",
        "pydantic",
        "instrumentation",
        "cli",
        "temporal",
        "schedule",
        "all",
    }


def test_without_an_extra_nothing_is_required(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    assert requirements
    assert [requirement for requirement in requirements if "extra ==" not in requirement] == []


def test_the_extra_all_holds_all_others(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    of_all = {line.split(";")[0] for line in requirements if line.endswith("extra == 'all'")}
    assert of_all == {line.split(";")[0] for line in requirements}


def test_metadata_names_version_licence_and_pythons(metadata: Message) -> None:
    assert metadata["Version"] == "0.1.0"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"


def test_import_flowcore_needs_no_extra(bare_python: Path) -> None:
    done = run(bare_python, "import flowcore, flowcore.stores; print(flowcore.__version__)")
    assert (done.stdout, done.stderr) == ("0.1.0\n", "")


def test_a_workflow_runs_without_any_extra(bare_python: Path) -> None:
    code = """
from flowcore import Workflow

wf = Workflow("trip")

@wf.step
def book(ctx):
    return "S-1"

print(wf.run({}, hooks=())[book])
"""
    done = run(bare_python, code)
    assert (done.stdout, done.stderr) == ("S-1\n", "")


def test_every_public_name_is_there_without_any_extra(bare_python: Path) -> None:
    done = run(bare_python, "from flowcore import *; from flowcore.stores import *")
    assert done.stderr == ""


def test_a_hook_without_its_extra_names_the_extra(bare_python: Path) -> None:
    assert "pip install 'flowcore[otel]'" in error_of(bare_python, "from flowcore_otel import TracingHook")


@pytest.mark.parametrize("name", ["RedisStore", "AsyncRedisStore"])
def test_making_a_redis_store_without_its_extra_names_the_extra(bare_python: Path, name: str) -> None:
    code = f"from flowcore.stores import {name}; {name}(object())"
    assert "pip install 'flowcore[redis]'" in error_of(bare_python, code)


@pytest.fixture(scope="module")
def beside_the_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The tests in a folder without the packages, and the environment in which both come from the wheel."""
    folder, site = tmp_path_factory.mktemp("beside"), tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder, {**os.environ, "PYTHONPATH": str(site)}


def test_the_tests_pass_against_the_wheel(beside_the_wheel: tuple[Path, dict[str, str]], full: bool) -> None:
    folder, environment = beside_the_wheel
    where = "import flowcore, flowcore_otel; print(flowcore.__file__, flowcore_otel.__file__)"
    shown = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, check=True)
    assert str(ROOT).encode() not in shown.stdout
    names = ["core/test_undo", "otel/test_tracing", *(["durable/test_takeover", "cli/test_cli"] if full else [])]
    chosen = [f"tests/{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout.splitlines()[-1]
