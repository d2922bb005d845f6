"""Mutation testing of the kernel and of durability: `python -m tests.simulator.mutate [module ...] [--jobs N] [--every
N]`.

It is not part of the normal test run. It makes all mutants that a few kinds of small changes of the source give
(comparisons turned, conditions negated, constants moved, statements left out, ...), one at a time, each in a forked
process. The simulation judges a mutant, first with a few hundred seeds, then with as many stories of crashes. If it
survives, the tests that reach the changed lines judge it, the quickest first. At the end the tool prints the mutants
that survived and the share that was killed.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import mutants, test_crash_mutants, test_mutants

MODULES = (
    *(
        f"_kernel.{name}"
        for name in (
            "outcome",
            "run",
            "steps",
            "attempts",
            "undo",
            "undo_order",
            "run_state",
            "stopping",
            "inline",
            "effects",
        )
    ),
    *(
        "_kernel.settings",
        "_kernel.emit",
        "_kernel.emit_steps",
        "_durable.claim",
        "_durable.takeover",
        "_durable.restoring",
        "_durable.checkpoints",
        "_durable.ledger",
    ),
    *("_durable.unsaved", "_durable.fast_checkpoints"),
)
SEEDS = 600
PATIENCE = 25
"""seconds for the seeds; a mutant that takes longer counts as caught"""
TESTS = (
    "tests/core",
    "tests/durable/test_programs.py",
    "tests/simulator/test_agreement.py",
    "tests/simulator/test_testing.py",
)
SLOW = 3.0
"""seconds; tests that take longer are left out"""
TESTS_PATIENCE = 300


@dataclass
class Mutation:
    module: str
    line: int
    what: str
    path: tuple[Any, ...]
    """the fields and indices that lead from the module to the node"""
    base: ast.Module
    lines: range
    """the lines of the statement that is changed; of a compound statement, the lines of its head"""

    def tree(self) -> ast.Module:
        """Return the mutated module."""
        tree = copy.deepcopy(self.base)
        parent: Any = tree
        for name, index in self.path[:-1]:
            parent = getattr(parent, name) if index is None else getattr(parent, name)[index]
        name, index = self.path[-1]
        target = getattr(parent, name) if index is None else getattr(parent, name)[index]
        new = next(made for said, made in changes(target) if said == self.what)
        filled = ast.copy_location(ast.Pass(), target) if new is None else ast.copy_location(new, target)
        if index is None:
            setattr(parent, name, filled)
        else:
            getattr(parent, name)[index] = filled
        return ast.fix_missing_locations(tree)


SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Yield the changes of a node: each in words, with the new node, or None if the statement is left out."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            new = copy.copy(node)
            new.ops = [SWAPS[type(op)]()]
            yield f"{type(op).__name__} -> {type(new.ops[0]).__name__}", new
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPS:
            other: Any = copy.copy(node)
            other.op = SWAPS[type(node.op)]()
            yield f"{type(node.op).__name__} -> {type(other.op).__name__}", other
        case ast.AugAssign() if type(node.op) in SWAPS:
            changed = copy.copy(node)
            changed.op = SWAPS[type(node.op)]()
            yield f"{type(node.op).__name__}= -> {type(changed.op).__name__}=", changed
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", node.operand
        case ast.If() | ast.While() | ast.IfExp():
            turned: Any = copy.copy(node)
            turned.test = ast.UnaryOp(ast.Not(), node.test)
            yield f"{type(node).__name__.lower()} negated", turned
        case ast.Constant(value=bool() as truth):
            yield f"{truth} -> {not truth}", ast.Constant(not truth)
        case ast.Constant(value=int() | float() as number):
            yield f"{number} -> {number + 1}", ast.Constant(number + 1)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant | ast.Tuple):
            yield "return None", ast.Return(ast.Constant(None))
        case ast.Assign() | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield f"{type(node).__name__.lower()} left out", None
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield "statement left out", None
        case _:
            pass


def skipped(node: ast.AST) -> bool:
    """Whether a node is no behaviour: an import, an annotation, a declaration or a text for people."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.AnnAssign | ast.ClassDef | ast.Assert):
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def mutations(module: str) -> Iterator[Mutation]:
    """Yield every mutant of a module. Each has one change, in one of its functions."""
    live: Any = importlib.import_module(f"flowcore.{module}")
    source = mutants.source_of(live)

    def inside(
        tree: ast.AST, path: tuple[Any, ...], lines: range, *, function: bool
    ) -> Iterator[tuple[tuple[Any, ...], ast.AST, range]]:
        for name, value in ast.iter_fields(tree):
            many = value if isinstance(value, list) else [value]
            for index, child in enumerate(many):
                if not isinstance(child, ast.AST) or name in {"decorator_list", "returns", "annotation"}:
                    continue
                if name == "args" and not isinstance(tree, ast.Call):  # These are the parameters of a function.
                    continue
                if skipped(child) and not isinstance(child, ast.ClassDef):
                    continue
                here = (*path, (name, index if isinstance(value, list) else None))
                is_function = function or isinstance(child, ast.FunctionDef)
                its = extent(child) if isinstance(child, ast.stmt) else lines
                if function:
                    yield here, child, its
                yield from inside(child, here, its, function=is_function)

    base = ast.parse(source)
    for path, node, lines in inside(base, (), range(0), function=False):
        for what, _ in changes(node):
            yield Mutation(module, getattr(node, "lineno", 0), what, path, base, lines)


def extent(statement: ast.stmt) -> range:
    """Return the lines of a statement, without those of the statements in it."""
    body: list[ast.stmt] = getattr(statement, "body", [])
    return range(statement.lineno, max(statement.lineno, body[0].lineno - 1 if body else statement.end_lineno or 0) + 1)


def in_a_fork(act: Any, patience: float) -> int:
    """Return the exit status of `act()` in a forked process, or 99 if it takes longer than `patience` seconds."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = 98
        with contextlib.suppress(BaseException):
            status = act()
        os._exit(status)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 99


def suite(tests: list[str], *options: str, plugins: tuple[object, ...] = ()) -> int:
    """Run tests with pytest, and return the exit status."""
    import pytest

    # Hypothesis is already imported, and pytest warns of that while it is being configured.
    warnings = "filterwarnings=error\nignore:Module already imported"
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-o", warnings]
    return int(pytest.main([*quiet, "-o", "faulthandler_timeout=30", *options, *tests], plugins=list(plugins)))


class Timed:
    """A pytest plugin that writes to a file how long each test took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.seconds), encoding="utf-8")


def reached() -> dict[tuple[str, int], list[str]]:
    """Return the tests that reach each line of each module, the quickest first."""
    import coverage

    with tempfile.TemporaryDirectory() as folder:
        times, data = Path(folder, "times"), Path(folder, "coverage")

        def whole() -> int:
            os.environ["COVERAGE_FILE"] = str(data)
            return suite(
                list(TESTS), "--cov=flowcore._kernel", "--cov-context=test", "--cov-report=", plugins=(Timed(times),)
            )

        if in_a_fork(whole, 1800):
            raise SystemExit("the tests fail without any mutant: mend that first")
        seconds: dict[str, float] = json.loads(times.read_text(encoding="utf-8"))
        known = coverage.CoverageData(str(data))
        known.read()
        found: dict[tuple[str, int], list[str]] = {}
        for file in filter(lambda file: Path(file).parent.name in {"_kernel", "_durable"}, known.measured_files()):
            for line, contexts in known.contexts_by_lineno(file).items():
                tests = {context.partition("|")[0] for context in contexts if context}
                quick = sorted(
                    (test for test in tests if seconds.get(test, SLOW) < SLOW), key=lambda test: seconds[test]
                )
                found[f"{Path(file).parent.name}.{Path(file).stem}", line] = quick
        return found


def killed(
    mutation: Mutation, clean: list[int], crashes: list[int], reach: dict[tuple[str, int], list[str]] | None
) -> str | None:
    """Return what noticed the mutant: "seeds", "stories" or "tests"; None if it survived. `clean` and `crashes` are the
    seeds and stories that find nothing without it."""
    module: Any = importlib.import_module(f"flowcore.{mutation.module}")
    code = compile(mutation.tree(), str(module.__file__), "exec")
    tests = [test for line in mutation.lines for test in (reach or {}).get((mutation.module, line), ())]

    def judged(judge: Any) -> bool:
        def act() -> int:
            with mutants.swapped(module, code):
                return 1 if judge() else 0

        return bool(in_a_fork(act, TESTS_PATIENCE if judge is suited else PATIENCE))

    def suited() -> int:
        return suite(list(dict.fromkeys(tests)))

    if judged(lambda: test_mutants.found_by(clean) is not None):
        return "seeds"
    if judged(lambda: test_crash_mutants.found_by(crashes) is not None):
        return "stories"
    return "tests" if tests and judged(suited) else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=int, default=1, help="only every so many mutants")
    parser.add_argument("--first", type=int, default=0, help="with --every: which one of so many")
    parser.add_argument("--seeds-only", action="store_true")
    options = parser.parse_args()
    clean = [seed for seed in range(SEEDS) if test_mutants.found_by([seed]) is None]
    crashes = [seed for seed in range(SEEDS) if test_crash_mutants.found_by([seed]) is None]
    left_out = 2 * SEEDS - len(clean) - len(crashes)
    print(f"{left_out} of {2 * SEEDS} seeds find something without any mutant, and are left out", flush=True)
    reach = None if options.seeds_only else reached()
    todo = [mutation for module in options.modules for mutation in mutations(module)][options.first :: options.every]
    print(f"{len(todo)} mutants", flush=True)
    count: dict[str | None, int] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutation, by in zip(todo, pool.map(lambda one: killed(one, clean, crashes, reach), todo), strict=True):
            count[by] = count.get(by, 0) + 1
            if by is None:
                print(f"survived: {mutation.module}.py:{mutation.line}: {mutation.what}", flush=True)
    dead = len(todo) - count.get(None, 0)
    by_whom = ", ".join(f"by {whom} {count.get(whom, 0)}" for whom in ("seeds", "stories", "tests"))
    print(f"{dead} of {len(todo)} killed, {dead / len(todo):.1%}; {by_whom}")


if __name__ == "__main__":
    main()
