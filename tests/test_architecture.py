"""Who may import whom: flowcore's parts know those below them and no others, and importing it costs nothing else."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import flowcore

ROOT = Path(__file__).parents[1]

PARTS: dict[str, str] = {
    "errors": "",
    "portable": "errors",
    "status": "",
    "functions": "errors",
    "validation": "",
    "inputs": "errors validation",
    "keys": "errors",
    "retry": "errors functions",
    "fires": "",
    "schedule": "errors fires functions retry status",
    "context": "errors fires",
    "forks": "",
    "exits": "",
    "events": "errors functions status retry forks fires exits",
    "snapshot": "errors context",
    "_wire": "errors portable events snapshot",
    "_in_executor": "errors context snapshot _wire",
    "step": "errors functions retry context snapshot",
    "run": "errors portable status",
    "plan": "errors functions _in_executor",
    "describe": "errors plan",
    "lint": "errors functions plan",
    "own_errors": "errors",
    "new_steps": "errors functions retry context step",
    "workflow": "own_errors new_steps errors functions inputs keys retry step context plan describe lint snapshot forks",
    "picture": "errors status run events plan describe",
    "stores": "errors status retry run forks validation",
    "_kernel": "errors functions keys step status retry context run plan workflow events exits",
    "_durable": "own_errors errors functions status retry context run plan workflow events stores.base stores.codec stores.canonical step forks _kernel",
    "_engines": "errors functions keys status retry context run workflow events stores _kernel _durable forks fires schedule exits",
    "temporal": (
        "errors own_errors keys status retry run plan step workflow events fires schedule stores _wire _kernel _durable _engines"
    ),
    "cli": "errors status stores workflow picture schedule fires _engines.driving",
    "__main__": "",
    "testing": "errors exits status retry context run plan workflow events stores _kernel _durable _engines.driving _in_executor",
}
"""what each module or subpackage of flowcore may import of flowcore when it is imported; flowcore itself: all of them"""

ALONE = {"flowcore.testing"}
"""what nothing else in flowcore imports: it is for tests"""

FOR_THE_PROTOCOL = frozenset(
    (
        *("asyncio.exceptions", "collections", "collections.abc", "contextlib", "contextvars", "dataclasses", "enum"),
        *("functools", "hashlib", "itertools", "json", "math", "operator", "types", "typing"),
    )
)
"""all that the programs may have of the standard library: nothing that waits, tells the time, or draws lots"""

EXCEPTIONS = {
    # The books of a run are shared by the threads that drive it, and the lock that guards them belongs to the books:
    # every driver would have to make the same one. Nothing but Lock is used.
    ("flowcore._kernel.run_state", "threading"): {"Lock"},
}
"""(module, what it imports) -> the only names of that which it uses"""

LAZY: dict[str, set[str]] = {
    # Slow to import, and needed by few runs.
    "flowcore": {"importlib.metadata"},
    "flowcore.keys": {"hashlib"},
    "flowcore._durable.claim": {"hashlib"},
    "flowcore.events.loggers": {"json"},
    "flowcore.plan": {"json"},
    "flowcore.retry": {"random"},
    "flowcore.context": {"copy"},
    "flowcore.inputs": {"copy"},
    "flowcore._wire": {"json", "pickle", "pkgutil", "traceback"},
    "flowcore._in_executor": {"pickle"},
    "flowcore._durable.handed_out": {"pickle"},
    # For an HTTP date, a key in a message, and an error that leaves the process.
    "flowcore.errors": {"datetime", "email.utils", "hashlib", "flowcore.portable"},
    "flowcore.portable": {"pickle", "traceback"},
    # For a KeyError of a recorded run.
    "flowcore.own_errors": {"ast"},
    # With schedules only, which bring zoneinfo and cronsim along.
    "flowcore.fires": {"datetime"},
    "flowcore.schedule": {"cronsim"},
    "flowcore._engines.threads": {"flowcore._engines.schedules"},
    "flowcore.temporal.engine": {"flowcore.temporal.schedules"},
    "flowcore._engines.aio": {"flowcore._engines.schedules"},
    # For the first value that JSON has no form for.
    "flowcore.stores.codec": {"base64", "datetime", "decimal", "uuid", "zoneinfo"},
    "flowcore.stores.canonical": {"decimal", "unicodedata"},
    "flowcore.stores": {
        *(
            "flowcore.stores.opening",
            "flowcore.stores.pydantic_codec",
            "flowcore.stores.redis",
            "flowcore.stores.sqlite",
        )
    },
    "flowcore.stores.opening": {
        "flowcore.stores.redis",
        "flowcore.stores.sqlite",
        "flowcore.temporal.blocking",
        "redis",
    },
    # For a codec that hides keys.
    "flowcore.stores.sealing": {"hmac", "secrets"},
    # The commands need the extra `cli`, and each other's group.
    "flowcore.__main__": {"flowcore.cli"},
    "flowcore.cli.app": {"flowcore.cli.deciding", "flowcore.cli.reading", "flowcore.cli.top"},
    # Terminals whose keys can be read, which not every system has.
    "flowcore.cli.top": {"termios", "tty"},
    # The picture of a run is drawn for who asks for it.
    "flowcore.run": {"flowcore.picture"},
    "flowcore.stores.records": {"flowcore.picture", "flowcore.stores.story"},
    # The bars need the extra `cli`, and a terminal.
    "flowcore.events.progress": {"flowcore.events.progress_bars"},
    # An extra, imported when it is used.
    "flowcore.stores.redis.store": {"redis"},
    "flowcore.stores.pydantic_codec": {"pydantic"},
    # Not even with that extra is it always there.
    "flowcore.stores.redis.connection_cache": {"hiredis"},
    # pytest and hypothesis, which only authors of stores need.
    "flowcore.testing": {"flowcore.testing.conformance"},
    # wf.run() reaches for an engine: the one place where a definition knows what is above it.
    "flowcore.workflow": {"flowcore.events", "flowcore.picture", "flowcore.stores.memory", "flowcore._engines.threads"},
}
"""imports inside of functions; all others stand at the top"""

BY_NAME = "flowcore.stores.opening"
"""imports what an operator has named on the command line"""

WITH_REDIS = {("flowcore.stores.redis.store", "later"), (BY_NAME, "later")}

WITHOUT_ALL = {
    "flowcore.__main__",
    "flowcore._durable",
    "flowcore._engines",
    "flowcore._kernel",
    "flowcore_otel.names",
}
"""docstrings alone, and a module of nothing but public names"""

LONGEST = 450
"""lines of a file"""

OF_FLOWCORE = {"flowcore", "flowcore.errors", "flowcore.events"}
"""what flowcore_otel may know of flowcore"""


# -- reading imports ---------------------------------------------------------------------------------------------------


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported`: when it is itself imported ("now"), in a function ("later") or for types ("never")."""

    importer: str
    imported: str
    when: str


Sources = Mapping[str, str]
"""module name -> text; a package goes by its own name"""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str) -> dict[str, str]:
    return {module_name(file): file.read_text(encoding="utf-8") for file in sorted((ROOT / package).rglob("*.py"))}


def imports(modules: Sources) -> Iterator[Import]:
    for name, text in modules.items():
        for node, when in statements(text):
            if isinstance(node, ast.Import):
                yield from (Import(name, alias.name, when) for alias in node.names)
            else:
                base = _base(node, name, modules)
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield Import(name, whole if whole in modules else base, when)


@functools.cache
def statements(text: str) -> tuple[tuple[ast.Import | ast.ImportFrom, str], ...]:
    """The imports of a text, and when each of them is."""
    return tuple(_statements(parsed(text), "now"))


def _statements(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        inside = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = "later"
        elif isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            inside = "never"
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        yield from _statements(child, inside)


def _base(node: ast.ImportFrom, name: str, modules: Sources) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{name}.") for other in modules)
    package = name.split(".") if is_package else name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


# -- judging them ------------------------------------------------------------------------------------------------------


def part(module: str) -> str:
    """flowcore.stores.memory -> stores."""
    return module.split(".")[1] if "." in module else ""


def allows(allowed: str, imported: str) -> bool:
    """Whether a module is among `allowed`, itself or by its package."""
    inner = imported.partition(".")[2]
    return any(inner == one or inner.startswith(f"{one}.") for one in allowed.split())


def wrong_directions(modules: Sources, parts: Mapping[str, str] = PARTS) -> Iterator[str]:
    for one in imports(modules):
        if one.imported.split(".")[0] == "flowcore_otel":
            yield f"{one.importer} imports {one.imported}: flowcore knows nothing of it"
        if one.imported in ALONE and not one.importer.startswith("flowcore.testing"):
            yield f"{one.importer} imports {one.imported}, which is for tests"
        if (
            one.importer in {"flowcore", "flowcore.__main__"}
            or one.when != "now"
            or one.imported.split(".")[0] != "flowcore"
        ):
            continue
        mine = part(one.importer)
        if mine not in parts:
            yield f"{one.importer} is new: say in PARTS what it may import"
        elif mine != part(one.imported) and not allows(parts[mine], one.imported):
            yield f"{one.importer} imports {one.imported}"


def impure(modules: Sources) -> Iterator[str]:
    """What the programs need that only drivers may: threads, loops, clocks, chance."""
    for one in imports(modules):
        if not one.importer.startswith("flowcore._kernel") or one.imported.split(".")[0] in {
            "flowcore",
            "__future__",
        }:
            continue
        used = EXCEPTIONS.get((one.importer, one.imported))
        if used is not None:
            extra = _used(modules[one.importer], one.imported) - used
            if extra:
                yield f"{one.importer} uses {', '.join(sorted(extra))} of {one.imported}"
        elif one.imported not in FOR_THE_PROTOCOL and one.when != "never":
            yield f"{one.importer} imports {one.imported}"
    for name, text in modules.items():
        if name.startswith("flowcore._kernel"):
            for node in ast.walk(parsed(text)):
                if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                    yield f"{name}:{node.lineno} is async: programs are for all drivers"


def _used(text: str, module: str) -> set[str]:
    """The names of `module` that a text uses, as module.name or by importing them; the module itself otherwise."""
    tree = parsed(text)
    used: set[str] = set()
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    of_module = {id(node.value): node.attr for node in attributes if ast.unparse(node.value) == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == module:
            used.add(of_module.get(id(node), module))
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            used.update(alias.name for alias in node.names)
    return used


def wrongly_lazy(modules: Sources) -> Iterator[str]:
    later = {(one.importer, one.imported) for one in imports(modules) if one.when == "later"}
    listed = {(name, imported) for name, several in LAZY.items() for imported in several}
    for importer, imported in sorted(later - listed):
        yield f"{importer} imports {imported} inside of a function: say why in LAZY"
    for importer, imported in sorted(listed - later):
        yield f"LAZY lists {imported} in {importer}, which does not import it inside of a function"


def dynamic(modules: Sources) -> Iterator[str]:
    """Imports that cannot be read off the text."""
    for name, text in modules.items():
        for node in ast.walk(parsed(text)):
            if name == BY_NAME or not isinstance(node, ast.Call | ast.ImportFrom):
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
                yield f"{name}:{node.lineno} imports by a string"
            elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield f"{name}:{node.lineno} imports a star"


def redis_elsewhere(modules: Sources) -> Iterator[str]:
    for one in imports(modules):
        if one.imported.split(".")[0] == "redis" and (one.importer, one.when) not in WITH_REDIS:
            yield f"{one.importer} imports {one.imported}"


def circle(modules: Sources) -> list[str]:
    """Modules that import each other when they are imported, or []."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for one in imports(modules):
        if one.when == "now" and one.imported in modules and one.imported != one.importer:
            graph[one.importer].add(one.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def in_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions; each by name. As ruff sorts `__all__`."""
    return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name


def all_of(text: str) -> list[str] | None:
    """The `__all__` of a module's text."""
    for node in parsed(text).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def bad_lists(modules: Sources) -> Iterator[str]:
    for name, text in modules.items():
        names = all_of(text)
        if names is None:
            if name not in WITHOUT_ALL:
                yield f"{name} has no __all__"
            continue
        if names != sorted(set(names), key=in_order):
            yield f"{name}.__all__ is not sorted, or names something twice"
        tree = parsed(text)
        public = {alias.asname or alias.name for alias in _from_itself(tree) if not alias.name.startswith("_")}
        if any(other.startswith(f"{name}.") for other in modules) and public - set(names):
            yield f"{name} imports {', '.join(sorted(public - set(names)))}, which its __all__ lacks"


def _from_itself(tree: ast.Module) -> Iterator[ast.alias]:
    """What a package takes from its own modules."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield from node.names


def undocumented(module: str, modules: Sources) -> Iterator[str]:
    """The public names of a module without a docstring, and the public methods of its classes."""
    for name in sorted(all_of(modules[module]) or ()):
        value = getattr(importlib.import_module(module), name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            if not any(_documents(text, name) for text in modules.values()):
                yield f"{module}.{name}"
            continue
        # A dataclass without a docstring gets one that is its signature.
        if not (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or value.__doc__.startswith(
            f"{name}("
        ):
            yield f"{module}.{name}"
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False):  # a protocol's verbs: see its records
            hooks = {method for methods in vars(value).get("METHODS", {}).values() for method in methods}
            for method, function in vars(value).items():
                real = getattr(function, "fget", None) or getattr(function, "__func__", None) or function
                if inspect.isfunction(real) and not method.startswith("_") and method not in hooks and not real.__doc__:
                    yield f"{module}.{name}.{method}"


def _documents(text: str, name: str) -> bool:
    """Whether a text assigns to `name` and says right below it what that is."""
    body = parsed(text).body
    for node, after in itertools.pairwise(body):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(ast.unparse(target) == name for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


# -- the tests ---------------------------------------------------------------------------------------------------------

FLOWCORE = sources("flowcore")
OTEL = sources("flowcore_otel")


def test_flowcores_parts_import_only_those_below_them() -> None:
    assert list(wrong_directions(FLOWCORE)) == []
    assert set(PARTS) == {part(name) for name in FLOWCORE} - {""}


def test_the_table_itself_has_a_bottom_and_names_only_what_is_below() -> None:
    below: set[str] = set()
    for name, allowed in PARTS.items():
        assert {one.split(".")[0] for one in allowed.split()} <= below, name
        below.add(name)


def test_the_programs_know_no_threads_no_loop_no_clock_and_no_chance() -> None:
    assert list(impure(FLOWCORE)) == []


def test_only_listed_imports_stand_inside_of_functions() -> None:
    assert list(wrongly_lazy(FLOWCORE)) == []


def test_no_import_is_hidden_in_a_string_or_a_star() -> None:
    assert list(dynamic(FLOWCORE)) == []


def test_only_the_redis_store_imports_redis() -> None:
    assert list(redis_elsewhere(FLOWCORE)) == []


def test_no_modules_import_each_other() -> None:
    assert circle(FLOWCORE) == []
    assert circle(OTEL) == []


def test_flowcore_otel_knows_events_and_errors_of_flowcore_and_no_more() -> None:
    known = {one.imported for one in imports({**OTEL, **FLOWCORE}) if one.importer in OTEL}
    assert {name for name in known if name.split(".")[0] == "flowcore"} <= OF_FLOWCORE


def test_every_module_lists_its_public_names_in_order() -> None:
    assert list(bad_lists(FLOWCORE)) == []
    assert list(bad_lists(OTEL)) == []


@pytest.mark.parametrize("module", FLOWCORE)
def test_every_listed_name_exists(module: str) -> None:
    there = importlib.import_module(module)
    assert [name for name in all_of(FLOWCORE[module]) or () if not hasattr(there, name)] == []


@pytest.mark.parametrize("module", ["flowcore", "flowcore.events", "flowcore.stores", "flowcore.testing"])
def test_every_public_name_says_what_it_is(module: str) -> None:
    assert list(undocumented(module, FLOWCORE)) == []


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    lines = {name: len(text.splitlines()) for name, text in {**FLOWCORE, **OTEL}.items()}
    assert {name: number for name, number in lines.items() if number > LONGEST} == {}


def test_the_readme_says_how_long_the_kernel_and_the_driver_of_threads_are() -> None:
    drivers = {"flowcore._engines.thread_driver", "flowcore._engines.callers_thread"}
    read = [text for name, text in FLOWCORE.items() if name.startswith("flowcore._kernel") or name in drivers]
    said = re.search(r"the driver of `Engine`: ([\d,]+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert said is not None
    assert int(said[1].replace(",", "")) == pytest.approx(sum(len(text.splitlines()) for text in read), rel=0.05)


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, text in FLOWCORE.items() if not ast.get_docstring(parsed(text))] == []


def loaded_by(code: str) -> str:
    """What Python prints that runs `code` with no site packages in sight but flowcore's."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout.strip()


LOADED = """
before = set(sys.modules)  # a site may have loaded things of its own
import {module}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - set(sys.stdlib_module_names) - {{"flowcore"}}))
"""


@pytest.mark.parametrize("module", ["flowcore", "flowcore.stores", "flowcore.events", "flowcore.testing"])
def test_importing_flowcore_loads_the_standard_library_and_no_more(module: str) -> None:
    assert loaded_by(LOADED.format(module=module)) == "[]"


def test_importing_flowcore_has_no_effects() -> None:
    code = """
import signal, threading, warnings, logging
before = signal.getsignal(signal.SIGINT), logging.getLogger().handlers[:], sys.gettrace()
import flowcore
assert (signal.getsignal(signal.SIGINT), logging.getLogger().handlers[:], sys.gettrace()) == before
print(threading.active_count(), "flowcore.testing" in sys.modules)
"""
    assert loaded_by(code) == "1 False"


def test_every_public_name_is_reachable_from_flowcore() -> None:
    errors = importlib.import_module("flowcore.errors")
    raised = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert raised <= set(flowcore.__all__)


# -- that they can fail ------------------------------------------------------------------------------------------------


def planted(**texts: str) -> dict[str, str]:
    """flowcore with other texts; `a__b` is the module a.b of it."""
    return {**FLOWCORE, **{f"flowcore.{name.replace('__', '.')}": text for name, text in texts.items()}}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("errors", "from .context import Context", "flowcore.errors imports flowcore.context"),
        ("errors", "from . import context", "flowcore.errors imports flowcore.context"),
        ("errors", "import flowcore.context", "flowcore.errors imports flowcore.context"),
        ("errors", "class A:\n from .context import Context", "flowcore.errors imports flowcore.context"),
        ("errors", "try:\n from .context import Context\nfinally: pass", "flowcore.errors imports flowcore.context"),
        (
            "_kernel__run",
            "from .._engines.threads import Engine",
            "flowcore._kernel.run imports flowcore._engines.threads",
        ),
        ("_kernel__run", "from ..stores import memory", "flowcore._kernel.run imports flowcore.stores.memory"),
        ("_kernel__run", "from ..stores import RedisStore", "flowcore._kernel.run imports flowcore.stores"),
        (
            "_engines__threads",
            "from ..testing import X\nfrom ..brandnew import Y",
            "flowcore._engines.threads imports flowcore.brandnew",
        ),
        (
            "testing__journal",
            "from .._engines.threads import Engine",
            "flowcore.testing.journal imports flowcore._engines.threads",
        ),
        ("brandnew", "from .errors import Fatal", "flowcore.brandnew is new: say in PARTS what it may import"),
        (
            "_engines__aio",
            "import flowcore_otel",
            "flowcore._engines.aio imports flowcore_otel: flowcore knows nothing of it",
        ),
        (
            "_engines__aio",
            "def f():\n from flowcore_otel.names import X",
            "flowcore._engines.aio imports flowcore_otel.names: flowcore",
        ),
        (
            "_engines__aio",
            "def f():\n from .. import testing",
            "flowcore._engines.aio imports flowcore.testing, which is for tests",
        ),
    ],
)
def test_a_wrong_direction_is_found(name: str, text: str, found: str) -> None:
    assert [one for one in wrong_directions(planted(**{name: text})) if one.startswith(found)]


@pytest.mark.parametrize(
    "text", ["from .errors import Fatal", "if TYPE_CHECKING:\n from .aio import X", "def f():\n from .aio import X"]
)
def test_a_right_direction_is_not(text: str) -> None:
    assert not [one for one in wrong_directions(planted(context=text)) if one.startswith("flowcore.context")]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("_kernel__run", "import time", "flowcore._kernel.run imports time"),
        ("_kernel__run", "def f():\n import random", "flowcore._kernel.run imports random"),
        ("_kernel__run", "from time import monotonic", "flowcore._kernel.run imports time"),
        ("_kernel__run", "import asyncio", "flowcore._kernel.run imports asyncio"),
        ("_kernel__run", "from asyncio import sleep", "flowcore._kernel.run imports asyncio"),
        ("_kernel__run", "import threading", "flowcore._kernel.run imports threading"),
        ("_kernel__run_state", "import threading\nthreading.Thread()", "run_state uses Thread of threading"),
        ("_kernel__run_state", "from threading import Timer", "run_state uses Timer of threading"),
        ("_kernel__run_state", "import threading\nx = threading", "run_state uses threading of threading"),
        ("_kernel__run", "async def f(): ...", "flowcore._kernel.run:1 is async"),
        ("_kernel__brandnew", "import socket", "flowcore._kernel.brandnew imports socket"),
    ],
)
def test_an_impure_program_is_found(name: str, text: str, found: str) -> None:
    assert [one for one in impure(planted(**{name: text})) if found in one]


def test_a_lock_is_not() -> None:
    found = impure(planted(_kernel__run_state="import threading\nx = threading.Lock()"))
    assert not [one for one in found if one.startswith("flowcore._kernel.run_state")]


def test_other_faults_are_found() -> None:
    lazy = list(wrongly_lazy(planted(status="def f():\n import enum", retry="")))
    assert lazy == [
        "flowcore.status imports enum inside of a function: say why in LAZY",
        "LAZY lists random in flowcore.retry, which does not import it inside of a function",
    ]
    hidden = planted(status="x = __import__('redis')", _engines__aio="import importlib\nimportlib.import_module('a')")
    assert set(dynamic(hidden)) == {
        "flowcore.status:1 imports by a string",
        "flowcore._engines.aio:2 imports by a string",
    }
    assert list(dynamic(planted(status="from enum import *"))) == ["flowcore.status:1 imports a star"]
    assert list(redis_elsewhere(planted(_engines__aio="def f():\n import redis.asyncio"))) == [
        "flowcore._engines.aio imports redis.asyncio"
    ]
    assert list(redis_elsewhere(planted(stores__redis="import redis"))) == ["flowcore.stores.redis imports redis"]
    assert set(circle(planted(errors="from .status import S", status="from . import errors"))) == {
        "flowcore.errors",
        "flowcore.status",
    }


def test_a_bad_list_is_found() -> None:
    assert list(bad_lists(planted(status="x = 1"))) == ["flowcore.status has no __all__"]
    for names in ("['b', 'a']", "['a', 'a']", "['a', 'A']", "['A', 'B_C']"):
        assert list(bad_lists(planted(status=f"__all__ = {names}"))), names
    assert list(bad_lists(planted(stores="from .base import Store, Held\n__all__ = ['Store']"))) == [
        "flowcore.stores imports Held, which its __all__ lacks"
    ]


def test_a_name_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(undocumented("flowcore", FLOWCORE)) == []
    monkeypatch.setattr(flowcore.Engine, "__doc__", None)
    monkeypatch.setattr(flowcore.Run.explain, "__doc__", None)
    monkeypatch.setattr(flowcore.StepReport, "__doc__", "StepReport(status=...)")
    silent = {"flowcore.Engine", "flowcore.Run.explain", "flowcore.StepReport", "flowcore.SKIP_RUN"}
    assert set(undocumented("flowcore", planted(events__hooks="SKIP_RUN = object()"))) == silent


def test_a_loaded_package_is_found() -> None:
    assert loaded_by(LOADED.format(module="pytest")) != "[]"
