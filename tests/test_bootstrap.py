"""The script that makes `make test` and `make demo` work on a machine with python3 and nothing else."""

import ast
import base64
import hashlib
import http.server
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which `install` only notes what it was asked for."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)

    def install(environment: Path, wanted: list[str], locked: Path | None = None) -> None:
        (environment / "installed").write_text("\n".join(wanted) if locked is None else locked.read_text())

    monkeypatch.setattr(bootstrap, "install", install)
    monkeypatch.setattr(bootstrap, "make", lambda environment: bootstrap.run_venv(environment, "--without-pip"))
    return tmp_path


# -- An old Python ---------------------------------------------------------------------------------------------------


def test_an_old_python_gets_one_sentence() -> None:
    pretend = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r})"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"flowcore needs Python 3.11 or newer, and {sys.executable} is Python 3.9: "
        "name a newer one, as in `make test PYTHON=python3.12`.\n"
    )


def test_an_old_python_can_parse_the_script() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 7))  # the oldest that ast promises to know


# -- When an environment is made -------------------------------------------------------------------------------------


def test_a_complete_environment_is_left_alone_in_silence(
    bootstrap: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.main(".venv", "demo")
    assert ".venv: not there yet; making it" in capsys.readouterr().out
    (checkout / ".venv" / "mine").touch()

    bootstrap.main(".venv", "demo")

    assert (checkout / ".venv" / "mine").exists()
    assert capsys.readouterr().out == ""


def test_what_is_being_installed_is_printed(
    bootstrap: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.main(".venv", "demo")
    assert ".venv: installing flowcore, fastapi, uvicorn" in capsys.readouterr().out
    assert "fastapi" in (checkout / ".venv" / "installed").read_text()


def test_a_locked_group_gets_what_its_lock_names_and_is_made_anew_with_it(
    bootstrap: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = checkout / ".ci" / "demo.lock"
    lock.parent.mkdir()
    lock.write_text("fastapi==1.0 --hash=sha256:00")
    bootstrap.main(".venv", "demo")
    assert ".venv: installing fastapi, uvicorn" in capsys.readouterr().out
    assert (checkout / ".venv" / "installed").read_text() == lock.read_text()
    lock.write_text("fastapi==1.1 --hash=sha256:11")
    bootstrap.main(".venv", "demo")
    assert ".venv: out of date" in capsys.readouterr().out


def test_what_is_locked_is_checked_against_its_checksums(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "pip_install", lambda command, environment: asked.append(command))
    bootstrap.install(tmp_path, ["x"], tmp_path / "tools.lock")
    ((*_, hashes, option, lock),) = asked
    assert (hashes, option, lock) == ("--require-hashes", "--requirement", str(tmp_path / "tools.lock"))


def test_an_old_pip_is_renewed_before_it_chooses_versions(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "run", asked.append)
    monkeypatch.setattr(bootstrap, "pip_install", lambda command, environment: asked.append(command))
    bootstrap.install(tmp_path, ["x"])
    renewal, installation = asked
    assert f"pip-{renewal[-1].removeprefix('pip>=')}-py3-none-any.whl" == bootstrap.PIP_WHEEL
    assert installation[-3:] == ["x", "--editable", str(bootstrap.ROOT)]


def interrupt(environment: Path) -> None:
    (environment / "flowcore-stamp").unlink()


def add_a_dependency(environment: Path) -> None:
    project = environment.parent / "pyproject.toml"
    project.write_text(project.read_text().replace('"uvicorn', '"six",\n"uvicorn'))


def remove_its_python(environment: Path) -> None:
    (environment / "bin" / "python").unlink()


def change_the_python_version(environment: Path) -> None:
    (environment / "flowcore-stamp").write_text("made by another Python")


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (interrupt, "half-made"),
        (add_a_dependency, "out of date"),
        (change_the_python_version, "out of date"),
        (remove_its_python, "its Python is gone"),
    ],
)
def test_an_environment_that_is_not_as_it_should_be_is_made_anew(
    bootstrap: ModuleType,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    happens: Callable[[Path], None],
    reason: str,
) -> None:
    environment = checkout / ".venv"
    bootstrap.main(".venv", "demo")
    (environment / "leftover").touch()
    happens(environment)
    capsys.readouterr()

    bootstrap.main(".venv", "demo")

    assert f".venv: {reason}; making it" in capsys.readouterr().out
    assert not (environment / "leftover").exists()
    assert (environment / "bin" / "python").exists()


def test_a_moved_checkout_gets_a_new_environment(
    bootstrap: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.main(".venv", "demo")
    moved = checkout.rename(checkout.with_name("moved"))
    monkeypatch.setattr(bootstrap, "ROOT", moved)

    bootstrap.main(".venv", "demo")

    assert "out of date" in capsys.readouterr().out


def test_an_unrelated_setting_in_pyproject_does_not_remake_the_environment(
    bootstrap: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.main(".venv", "demo")
    capsys.readouterr()
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("\n[tool.other]\nx = 1\n")

    bootstrap.main(".venv", "demo")

    assert capsys.readouterr().out == ""


def test_a_failed_install_leaves_no_stamp(
    bootstrap: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_environment: Path, _wanted: list[str], _locked: Path | None = None) -> None:
        sys.exit("no network")

    monkeypatch.setattr(bootstrap, "install", fail)
    with pytest.raises(SystemExit):
        bootstrap.main(".venv", "demo")
    assert not (checkout / ".venv" / "flowcore-stamp").exists()


# -- What goes in ----------------------------------------------------------------------------------------------------


def test_included_groups_are_resolved(bootstrap: ModuleType) -> None:
    groups = {"a": ["x>=1", {"include-group": "b"}], "b": ["y[extra]==2"]}
    assert bootstrap.requirements(groups, "a") == ["x>=1", "y[extra]==2"]
    assert bootstrap.names(["x>=1", "y[extra]==2", "a.b-c ; python_version < '4'"]) == ["x", "y", "a.b-c"]


def test_pip_failing_shows_its_log_and_one_sentence(bootstrap: ModuleType, tmp_path: Path) -> None:
    bootstrap.run_venv(tmp_path / "env", "--without-pip")  # so that pip fails at once
    with pytest.raises(SystemExit, match=r"(?s)No module named pip.*pip could not install what env needs"):
        bootstrap.install(tmp_path / "env", ["x"])


def test_the_callers_settings_cannot_send_packages_elsewhere(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    environ = bootstrap.clean_environ()
    assert "/elsewhere" not in environ.values()
    assert environ["PIP_USER"] == "0"


# -- A Python without ensurepip --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pip's own wheel, put together again from the pip that is installed: no network needed."""
    pip = importlib.metadata.distribution("pip")
    wheel = tmp_path_factory.mktemp("pip") / f"pip-{pip.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in pip.files or []:
            if file.parts[0].startswith("pip") and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
    return wheel


class Index:
    """A package index on this machine, which knows pip alone."""

    def __init__(self, wheel: Path) -> None:
        self.content = wheel.read_bytes()
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.links = [self.link(wheel.name)]
        self.authorization: str | None = None
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.authorization = self.headers.get("Authorization")
                page = self.path == "/simple/pip/"
                body = "<br>".join(index.links).encode() if page else index.content
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/simple"

    def link(self, name: str, digest: str | None = None, attributes: str = "") -> str:
        return f'<a href="../../files/{name}#sha256={digest or self.digest}" {attributes}>{name}</a>'


@pytest.fixture
def index(pip_wheel: Path, bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index(pip_wheel)
    monkeypatch.setattr(bootstrap, "PIP_WHEEL", pip_wheel.name)
    monkeypatch.setattr(bootstrap, "PIP_SHA256", index.digest)
    monkeypatch.setenv("PIP_INDEX_URL", index.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=index.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield index
    index.server.shutdown()
    index.server.server_close()
    thread.join()


@pytest.fixture
def no_ensurepip(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Debian without python3-venv: only `--without-pip` succeeds."""
    real = bootstrap.run_venv

    def run_venv(environment: Path, *options: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = real(environment, "--without-pip")
        if not options:
            done.returncode = 1
        return done

    monkeypatch.setattr(bootstrap, "run_venv", run_venv)


@pytest.mark.usefixtures("no_ensurepip", "index")
def test_without_ensurepip_pip_comes_from_the_index(
    bootstrap: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.make(tmp_path / "env")

    assert "no ensurepip" in capsys.readouterr().out
    python = tmp_path / "env" / "bin" / "python"
    version = subprocess.run([python, "-I", "-m", "pip", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith(f"pip {importlib.metadata.version('pip')} from {tmp_path}")


def stop(exit_: pytest.ExceptionInfo[SystemExit]) -> str:
    """The one sentence that the script ended with."""
    text = str(exit_.value)
    assert len(text.splitlines()) == 1
    assert "apt install python3-venv" in text
    return text


@pytest.mark.usefixtures("no_ensurepip")
def test_an_index_without_that_pip_is_one_sentence(bootstrap: ModuleType, tmp_path: Path, index: Index) -> None:
    index.links = [index.link("pip-100.0-py3-none-any.whl")]
    with pytest.raises(SystemExit) as exit_:
        bootstrap.make(tmp_path / "env")
    assert f"does not list {bootstrap.PIP_WHEEL}" in stop(exit_)


@pytest.mark.usefixtures("no_ensurepip")
def test_a_pip_with_another_checksum_is_refused_whatever_its_index_says(
    bootstrap: ModuleType, tmp_path: Path, index: Index
) -> None:
    index.content += b"more"
    index.links = [index.link(bootstrap.PIP_WHEEL, hashlib.sha256(index.content).hexdigest())]
    with pytest.raises(SystemExit) as exit_:
        bootstrap.make(tmp_path / "env")
    assert "does not have the checksum written in bootstrap.py" in stop(exit_)
    assert not (tmp_path / "env" / "lib").is_symlink()


def test_the_checksum_in_the_script_is_one(bootstrap: ModuleType) -> None:
    assert len(bytes.fromhex(bootstrap.PIP_SHA256)) == 32
    assert bootstrap.PIP_WHEEL.startswith("pip-")


@pytest.mark.usefixtures("no_ensurepip")
def test_without_ensurepip_and_without_network_one_sentence_says_what_to_install(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # nothing listens there
    with pytest.raises(SystemExit, match=r"refused.*apt install python3-venv"):
        bootstrap.make(tmp_path / "env")


def test_https_is_taken_where_the_index_offers_it(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(address: str, index: str, settings: object) -> bytes:
        asked.append(address)
        return b""

    monkeypatch.setattr(bootstrap, "read", read)
    assert bootstrap.without_plain_http("http://pypi.example/simple", None) == "https://pypi.example/simple"
    assert asked == ["https://pypi.example/simple/pip/"]


def test_a_password_is_never_sent_over_plain_http(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, index: str, settings: object) -> bytes:
        assert address.startswith("https://")
        raise ConnectionRefusedError

    monkeypatch.setattr(bootstrap, "read", refuse)
    assert bootstrap.without_plain_http("http://pypi.example/simple", None) == "http://pypi.example/simple"
    with pytest.raises(LookupError, match=r"^http://pypi.example/simple asks for a password over plain http"):
        bootstrap.without_plain_http("http://me:secret@pypi.example/simple", None)


def test_an_https_index_cannot_lead_to_plain_http(bootstrap: ModuleType) -> None:
    with pytest.raises(ValueError, match="which is not https"):
        bootstrap.read("http://files.example/pip.whl", "https://pypi.example/simple", None)


def test_a_password_goes_to_the_index_alone(
    bootstrap: ModuleType, index: Index, pip_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.read(index.address + "/pip/", "http://me:secret@pypi.example/simple", bootstrap.PipSettings())
    assert index.authorization is None


def test_the_index_may_ask_for_a_password(
    bootstrap: ModuleType, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.address.replace("//", "//me:se%40cret@"))
    bootstrap.fetch_pip(bootstrap.PipSettings(), tmp_path)
    assert index.authorization == "Basic " + base64.b64encode(b"me:se@cret").decode()


def test_without_a_configured_index_the_sentence_says_so(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    with pytest.raises(LookupError, match="no package index is configured: PIP_INDEX_URL names one"):
        bootstrap.fetch_pip(bootstrap.PipSettings(), tmp_path)


def test_pip_settings_come_from_files_and_the_environment_wins(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "pip" / "pip.conf"
    own.parent.mkdir(parents=True)

    own.write_text("[global]\nindex-url = https://one.example/simple\ncert = /certs.pem\n")
    assert bootstrap.PipSettings().index == "https://one.example/simple"
    assert bootstrap.PipSettings().certificates == "/certs.pem"

    own.write_text("[global]\nindex-url = https://one.example\n[install]\nindex-url = https://two.example\n")
    assert bootstrap.PipSettings().index == "https://two.example"

    chosen = tmp_path / "chosen.conf"
    chosen.write_text("[install]\nindex-url = https://three.example\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(chosen))
    assert bootstrap.PipSettings().index == "https://three.example"

    monkeypatch.setenv("PIP_INDEX_URL", "https://four.example")
    assert bootstrap.PipSettings().index == "https://four.example"
