"""Every command, given on a store that was left behind by others."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import redis

from flowcore.cli import run
from tests.stores.test_redis_operating import reading_rights

__all__ = ["PASSWORD", "complaints", "reader_of"]

PASSWORD = uuid4().hex
_DECIDES = ("cancel", "resume", "undo", "hold", "release")


def given(options: list[str], *command: str) -> tuple[int, str, str]:
    """Give a command in this process: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run([*options, *command])
        except SystemExit as exit_:
            code = exit_.code
    return (code if isinstance(code, int) else 0), out.getvalue(), err.getvalue()


def reader_of(url: str, prefix: str = "flowcore") -> str:
    """The URL of a user of this Redis who may only read."""
    rights = [right.replace("flowcore", prefix) for right in reading_rights()]
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", *rights)
    return url.replace("//", f"//reader:{PASSWORD}@", 1)


def complaints(url: str, *options: str, may_decide: bool = True, most: int = 40) -> Iterator[str]:
    """What is wrong with the commands on a store: each must end with 0, say nothing on stderr, and give JSON if asked.
    `most`: runs that are looked at one by one. Decisions are made only if they may be, and only dry ones otherwise."""
    named = ["--store", url, *options]
    code, listed, error = given([*named, "--json"], "ls", "--limit", str(most))
    if code:
        yield f"ls: {error}"
        return
    keys = [one["key"] for one in json.loads(listed)["runs"]]
    if not keys:
        yield "there are no runs to look at"
    with tempfile.TemporaryDirectory() as folder:
        page = str(Path(folder) / "run.html")
        commands = [["ls"], ["top", "--once"], ["doctor"], ["ls", "--status", "held"], ["ls", "--older-than", "1s"]]
        for key in keys:
            commands += [["show", key], ["show", key, "--values"], ["timeline", key], ["html", key, "-o", page]]
        for command in commands:
            for form in ([], ["--json"]):
                code, out, error = given([*named, *form], *command)
                if code or error:
                    yield f"{' '.join(command)}: {code} {error}"
                elif form and command[0] != "timeline" and json.loads(out) is None:
                    yield f"{' '.join(command)}: no JSON"
    for verb in _DECIDES:
        code, out, error = given(named, verb, keys[0], "--dry-run")
        if code or out or not error.startswith(f"{verb} "):
            yield f"{verb} --dry-run: {code} {out} {error}"
    for command in (["hold", keys[0]], ["release", keys[0], "--yes"], ["gc"]) if may_decide else ():
        code, _, error = given(named, *command)
        if code not in {0, 1} or "Traceback" in error:
            yield f"{' '.join(command)}: {code} {error}"
