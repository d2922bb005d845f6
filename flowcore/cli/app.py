"""The command group `flowcore`: its shared options, its store, its exit codes, and how it reports errors."""

from __future__ import annotations

import copy
import getpass
import io
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import click
from rich.console import Console

from ..errors import DefinitionError, FlowcoreError, RunNotFound, StoreUnavailable, one_line, safe_repr
from ..stores.arguments import LISTED
from ..stores.base import Page, RunRecord
from ..stores.opening import open_store

__all__ = ["EXIT_CODES", "URGENT", "Operator", "complete_status", "flowcore", "pass_operator", "run"]

URGENT: Final = ("held", "expired")
"""the states of runs that `ls` lists first"""
_RUN_ID_BEGINS: Final = re.compile("[0-9a-f]{6,31}")
_SEARCHED: Final = 1_000
"""how many runs of each state are searched for the beginning of an id"""
EXIT_CODES = """\b
Exit codes:
  0  done
  1  refused, or nothing was found
  2  the command line is wrong
  3  the store is unavailable; retrying is safe
  4  not confirmed
"""


@dataclass
class Operator:
    """The shared options and the console of a command, and its store, which is opened at its first use."""

    url: str | None
    prefix: str | None
    codec: str | None
    as_json: bool
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    @cached_property
    def store(self) -> Any:
        if self.url is None:
            raise click.UsageError("No store given. Use --store or FLOWCORE_STORE, for example sqlite:runs.db.")
        return open_store(self.url, prefix=self.prefix, codec=self.codec)

    def find(self, name: str) -> RunRecord:
        """Return the record of a key or, if there is no such key, of a run id. Raises RunNotFound."""
        record: RunRecord | None = self.store.find(name)
        if record is not None:
            return record
        try:
            record = self.store.get_run(name)
        except RunNotFound as error:
            why = f"No run has the key or the id {safe_repr(name)}. To find it by a part of its key, use ls --key."
            raise RunNotFound(why) from error
        return cast("RunRecord", record)

    def look_up(self, name: str) -> RunRecord:
        """Return the same, or the record of the run whose id begins so, as `ls` shows it. Only for commands that read: a
        wrong key must not reach another run. Raises RunNotFound."""
        try:
            return self.find(name)
        except RunNotFound:
            begun = self._listed(name) if _RUN_ID_BEGINS.fullmatch(name) else {}
            if not begun:
                raise
        if len(begun) > 1:
            raise RunNotFound(
                f"The ids of {len(begun)} runs begin with {safe_repr(name)}. Use the key, or more of the id."
            )
        return self.find(*begun.values())

    def _listed(self, begins: str) -> dict[str, str]:
        """Return the ids that begin so, and their keys: of the latest runs, and of those that `ls` lists first."""
        pages = [self.store.list_runs(status=status, limit=_SEARCHED) for status in (*URGENT, None)]
        return {head.run_id: head.key for page in pages for head in page if head.run_id.startswith(begins)}

    def emit(self, data: Mapping[str, Any] | Iterable[Any], text: str) -> None:
        """Print a result: `data` as JSON if --json is given, else `text`."""
        say(json.dumps(data, ensure_ascii=True, default=str) if self.as_json else text)

    @property
    def who(self) -> str:
        """The user at this shell, as user@host, for the run's record."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = f"uid {os.getuid()}"
        return f"{user}@{socket.gethostname()}"


pass_operator = click.make_pass_decorator(Operator)


@click.group(
    epilog=EXIT_CODES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--store",
    "url",
    envvar="FLOWCORE_STORE",
    metavar="URL",
    help="sqlite:runs.db, redis://…, rediss://…, unix://…, temporal://…",
)
@click.option(
    "--prefix", envvar="FLOWCORE_PREFIX", help="Prefix of a Redis store's keys, or of Temporal's workflow ids."
)
@click.option(
    "--codec", envvar="FLOWCORE_CODEC", metavar="MODULE:NAME", help="The codec that the store's service uses."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.version_option(package_name="flowcore", prog_name="flowcore", message="%(prog)s %(version)s")
@click.pass_context
def flowcore(context: click.Context, url: str | None, prefix: str | None, codec: str | None, *, as_json: bool) -> None:
    """Inspect the runs in a store, and decide what happens to them."""
    context.obj = Operator(url, prefix, codec, as_json)
    if context.invoked_subcommand is None:
        say(context.get_help())


def _with_shared_options(command: click.Command) -> click.Command:
    """Add the options of `flowcore` to a command, so that they may come before or after its name, and return it."""
    named = {option.name for option in command.params}
    taken = {text for option in command.params for text in option.opts}
    for shared in flowcore.params:
        if (
            isinstance(shared, click.Option)
            and shared.expose_value
            and shared.name not in named
            and taken.isdisjoint(shared.opts)
        ):
            option = copy.copy(shared)
            option.default, option.envvar, option.expose_value, option.callback = None, None, False, _override
            command.params.append(option)
    return command


def _override(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        setattr(context.obj, option.name, value)


def complete_status(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Return the statuses that a shell offers to complete `begun`. The store refuses any other, and lists these."""
    return [status for status in LISTED if status.startswith(begun)]


def say(text: str, *, aside: bool = False) -> None:
    """Print a line, on stderr if `aside`. (click.echo would write UTF-8 to a terminal that is set to ASCII.)"""
    stream = sys.stderr if aside else sys.stdout
    stream.write(text + "\n")


def shows(text: str) -> bool:
    """Whether the terminal's encoding can show `text`."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return False
    return True


def with_key(error: FlowcoreError) -> str:
    """Return the message of an error followed by its key, which an operator may see."""
    return str(error) if error.key is None else f"{error} The key is {safe_repr(error.key)}."


def fail(message: str, code: int) -> NoReturn:
    say(f"flowcore: {one_line(message)}", aside=True)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit the process with its code. No error shows a traceback."""
    from . import deciding, reading, top

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell has closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
    if sys.stdin is None:  # a question is then not confirmed
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that the terminal's encoding lacks become `?`
    for command in (*reading.COMMANDS, *deciding.COMMANDS, top.top):
        flowcore.add_command(_with_shared_options(command))
    try:
        flowcore.main(args=arguments, prog_name="flowcore", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        fail("Nothing was done.", 4)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except DefinitionError as error:
        fail(str(error), 2)
    except StoreUnavailable as error:
        fail(str(error), 3)
    except FlowcoreError as error:
        fail(with_key(error), 1)
    except (ImportError, OSError) as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("Interrupted.", 4)
    sys.exit(0)


def pages(operator: Operator, **filters: Any) -> Iterable[RunRecord]:
    """Yield all records that match the filters of `list_runs`, and read them page by page."""
    after: str | None = None
    while True:
        page: Page = operator.store.list_runs(after=after, **filters)
        yield from page
        after = page.cursor
        if after is None:
            return
