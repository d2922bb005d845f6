"""Make a virtual environment for this checkout, or see at once that it is there.

    python3 .ci/bootstrap.py DIRECTORY GROUP

DIRECTORY gets flowcore (editable) and one of pyproject.toml's dependency groups. Where .ci/GROUP.lock is there, it gets
just what that names, without flowcore, each file with the checksum that it has there. A stamp, written last, says what
is inside: an environment that is half-made, out of date or moved has no matching stamp and is made anew. Nothing
but the standard library is needed: where Python comes without ensurepip (Debian without python3-venv), pip itself
is fetched from the index that pip is configured to use.

The syntax is that of Python 3.6, so that an old Python gets far enough to be told that it is too old.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        f"flowcore needs Python 3.11 or newer, and {sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "name a newer one, as in `make test PYTHON=python3.12`."
    )

import base64
import configparser
import hashlib
import html.parser
import json
import os
import re
import ssl
import subprocess
import tempfile
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAMP = "flowcore-stamp"
PYTHON_VERSION = "%d.%d.%d" % sys.version_info[:3]

# In an activated environment `python3` is that environment's: the one below it outlives a remake.
BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable

# Settings that would send pip's work elsewhere than into the environment.
DIVERTING = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON"}


def main(directory: str, group: str) -> None:
    environment = ROOT / directory
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = requirements(project["dependency-groups"], group)
    lock = ROOT / ".ci" / f"{group}.lock"
    locked = lock if lock.is_file() else None
    content = stamp(environment, project, wanted, locked)
    reason = why_make(environment, content)
    if reason is None:
        return
    print(f"{directory}: {reason}; making it with Python {PYTHON_VERSION}", flush=True)
    make(environment)
    print(f"{directory}: installing {', '.join(['flowcore', *names(wanted)][locked is not None :])}", flush=True)
    install(environment, wanted, locked)
    (environment / STAMP).write_text(content, encoding="utf-8")
    print(f"{directory}: ready", flush=True)


# -- What the environment should hold --------------------------------------------------------------------------------


def requirements(groups: "dict[str, list[Any]]", group: str) -> "list[str]":
    """The group's requirements, included groups resolved. (pip can read groups itself only since 25.1.)"""
    found: "list[str]" = []
    for entry in groups[group]:
        found += requirements(groups, entry["include-group"]) if isinstance(entry, dict) else [entry]
    return found


def names(wanted: "list[str]") -> "list[str]":
    return [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in wanted]


def stamp(environment: Path, project: "dict[str, Any]", wanted: "list[str]", locked: "Path | None" = None) -> str:
    """What the environment depends on. Its own path is part of it: neither scripts nor editable installs can move."""
    inputs = [PYTHON_VERSION, str(environment), project["build-system"], project["project"], wanted]
    if locked is not None:
        inputs.append(locked.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def why_make(environment: Path, content: str) -> "str | None":
    """Why the environment must be made, in words for a person; None if it is as it should be."""
    if not environment.is_dir():
        return "not there yet"
    if not (environment / STAMP).is_file():
        return "half-made"
    if (environment / STAMP).read_text(encoding="utf-8") != content:
        return "out of date"
    if not os.access(str(python_of(environment)), os.X_OK):
        return "its Python is gone"
    return None


# -- Making it -------------------------------------------------------------------------------------------------------


def make(environment: Path) -> None:
    """An empty environment that has pip."""
    if environment.is_symlink():  # venv refuses to follow one
        environment.unlink()
    if run_venv(environment).returncode == 0:
        return
    bare = run_venv(environment, "--without-pip")
    if bare.returncode:
        sys.exit(f"Python's venv module cannot make {environment} ({last_line(bare.stdout)}).")
    print("  this Python has no ensurepip: fetching pip itself", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            install_pip(environment, fetch_pip(PipSettings(), Path(scratch)))
    except (OSError, LookupError, ValueError) as error:  # URLError and SSLError are OSErrors
        sys.exit(
            f"Python has no ensurepip and pip cannot be fetched ({error}): "
            "install the venv module (Debian, Ubuntu: apt install python3-venv) and run make again."
        )


def run_venv(environment: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    # --clear, as what is there may be half of an environment.
    command = [BASE_PYTHON, "-I", "-m", "venv", "--clear", *options, str(environment)]
    return run(command)


def install(environment: Path, wanted: "list[str]", locked: "Path | None" = None) -> None:
    """Install flowcore and what is wanted, or what is locked. Shown are the packages' names and large
    downloads; the whole log only if it fails."""
    pip = [str(python_of(environment)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # Not compiled: of 9,000 files most are never imported, and Python compiles those that are.
    command = [*pip, "install", "--progress-bar=off", "--no-compile"]
    if locked is None:
        # The pip of an older Python needs three times as long to choose versions. If it cannot be renewed, it will do.
        run([*command, f"pip>={PIP_WHEEL.split('-')[1]}"])
        pip_install([*command, *wanted, "--editable", str(ROOT)], environment)
        return
    # Not flowcore itself, which would fetch what builds it: tools need the checkout alone.
    pip_install([*command, "--require-hashes", "--requirement", str(locked)], environment)


def pip_install(command: "list[str]", environment: Path) -> None:
    log = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=clean_environ(),
    ) as process:
        assert process.stdout is not None  # noqa: S101  (for the type checkers)
        for line in process.stdout:
            log.append(line)
            told = re.match(
                r"Collecting ([\w.-]+)|\s*Downloading (\S+ \([\d.]+ MB\))|(Installing collected packages)", line
            )
            if told:
                print("  " + next(filter(None, told.groups())), flush=True)
    if process.returncode:
        sys.exit("".join(log) + f"pip could not install what {environment.name} needs: see above.")


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def run(command: "list[str]") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=clean_environ(),
    )


def clean_environ() -> "dict[str, str]":
    kept = {name: value for name, value in os.environ.items() if name not in DIVERTING}
    return {**kept, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]


# -- pip without ensurepip -------------------------------------------------------------------------------------------


class PipSettings:
    """The index and certificates pip is configured with, as far as they are needed to fetch one wheel."""

    def __init__(self) -> None:
        self._files = configparser.RawConfigParser(strict=False)
        chosen = os.environ.get("PIP_CONFIG_FILE")
        # The later file wins. PIP_CONFIG_FILE=/dev/null is pip's way to say: no files at all.
        if chosen != os.devnull:
            config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
            everywhere = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
            own = [Path.home() / ".pip/pip.conf", config / "pip/pip.conf"]
            mac = [base / "Library/Application Support/pip/pip.conf" for base in (Path("/"), Path.home())]
            self._files.read([*everywhere, *mac, *own, *([chosen] if chosen else [])], encoding="utf-8")
        self.index = self._get("index-url") or ""
        self.certificates = (
            self._get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        )

    def _get(self, option: str) -> "str | None":
        set_by_hand = os.environ.get("PIP_" + option.upper().replace("-", "_"))
        for section in ("install", "global"):
            set_by_hand = set_by_hand or self._files.get(section, option, fallback=None)
        return set_by_hand


# The pip that is fetched where Python brings none. Its checksum is written here, so that the index is not the only one to
# say what the file should be. It runs on Python 3.10 and newer.
PIP_WHEEL = "pip-26.1-py3-none-any.whl"
PIP_SHA256 = "4e8486d821d814b77319acb7b9e8bf5a4ee7590a643e7cb21029f209be8573c1"


class Links(html.parser.HTMLParser):
    """The addresses of a "simple" index page's links (PEP 503), by file name and without their fragments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: "dict[str, str]" = {}

    def handle_starttag(self, tag: str, attrs: "list[tuple[str, str | None]]") -> None:
        address = urllib.parse.urldefrag(dict(attrs).get("href") or "").url
        if tag == "a":
            self.found[urllib.parse.unquote(address.rpartition("/")[2])] = address


def fetch_pip(settings: PipSettings, into: Path) -> Path:
    """Download the pip that this file names from the configured index, and check it against the checksum written here."""
    if not settings.index:
        raise LookupError("no package index is configured: PIP_INDEX_URL names one")
    index = without_plain_http(settings.index.rstrip("/"), settings)
    page = index + "/pip/"
    links = Links()
    links.feed(read(page, index, settings).decode("utf-8"))
    if PIP_WHEEL not in links.found:
        raise LookupError(f"{without_password(index)} does not list {PIP_WHEEL}")
    content = read(urllib.parse.urljoin(page, links.found[PIP_WHEEL]), index, settings)
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise ValueError(f"{PIP_WHEEL} of this index does not have the checksum written in {Path(__file__).name}")
    wheel = into / PIP_WHEEL
    wheel.write_bytes(content)
    return wheel


def without_plain_http(index: str, settings: PipSettings) -> str:
    """The index over https if it offers that. Over plain http nothing but this machine's own may ask for a password."""
    parts = urllib.parse.urlsplit(index)
    if parts.scheme != "http" or parts.hostname in {"127.0.0.1", "::1", "localhost"}:
        return index
    secure = urllib.parse.urlunsplit(parts._replace(scheme="https"))
    try:
        read(secure + "/pip/", secure, settings)
    except (OSError, ValueError):
        if parts.username is not None:
            raise LookupError(
                f"{without_password(index)} asks for a password over plain http, where others can read it"
            ) from None
        return index
    return secure


def read(address: str, index: str, settings: PipSettings) -> bytes:
    """GET, with the name and password that the index's address may carry, sent to that very origin alone."""
    parts = urllib.parse.urlsplit(address)
    user = urllib.parse.urlsplit(index)
    if user.scheme == "https" and parts.scheme != "https":
        raise ValueError(f"{without_password(index)} leads to {without_password(address)}, which is not https")
    request = urllib.request.Request(without_password(address), headers={"Accept": "text/html, */*;q=0.1"})
    same_origin = (parts.scheme, parts.hostname, parts.port) == (user.scheme, user.hostname, user.port)
    if user.username is not None and same_origin:
        secret = f"{urllib.parse.unquote(user.username)}:{urllib.parse.unquote(user.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    # Certificates from the settings if there are any, else Python's own choice (which knows SSL_CERT_FILE).
    trust = Path(settings.certificates) if settings.certificates else None
    context = ssl.create_default_context(
        cafile=str(trust) if trust and not trust.is_dir() else None,
        capath=str(trust) if trust and trust.is_dir() else None,
    )
    with urllib.request.urlopen(request, timeout=60, context=context) as response:
        return bytes(response.read())


def without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def install_pip(environment: Path, wheel: Path) -> None:
    # A wheel is a zip file that Python can run: pip installs itself.
    result = run([str(python_of(environment)), f"{wheel}/pip", "install", "--no-index", "--no-deps", str(wheel)])
    if result.returncode:
        raise OSError(last_line(result.stdout))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("Interrupted: the next make begins this environment anew.")
