"""flowcore/PROMISES.md: each of its sentences names the tests that hold it, and those are there."""

import ast
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "flowcore" / "PROMISES.md"

REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+)`")
CODE = re.compile(r"`[^`]*`")
BLOCK = re.compile(r"\n(?=- )|\n{2,}")
NOT_HELD = re.compile(r"pytest\.mark\.(skip|xfail)")
END = re.compile(r"[.!?](?:\s+|$)")

Reference = tuple[str, str]
"""a file, relative to tests/, and a function in it"""


def sentences(page: str) -> Iterator[tuple[str, list[Reference]]]:
    """The sentences of a page's paragraphs and bullets, each with the tests named right after it."""
    for block in BLOCK.split(page):
        text = " ".join(block.split())
        if not text or text.startswith("#"):
            continue
        if text.startswith("|"):
            yield from _rows(block)
            continue
        begin = 0
        said: list[tuple[str, list[Reference]]] = []
        for match in [*REFERENCE.finditer(text), None]:
            prose = text[begin : match.start() if match else len(text)].removeprefix("- ").strip()
            said.extend((sentence, []) for sentence in _split(prose))
            if match is not None:
                begin = match.end()
                if not said:
                    raise AssertionError(f"a test before any sentence: {text}")
                said[-1][1].append((match[1], match[2]))
        yield from said


def _rows(table: str) -> Iterator[tuple[str, list[Reference]]]:
    """The rows of a table, each a sentence; the tests are in its last cell."""
    for row in table.strip().splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        yield f"{': '.join(cells[:-1])}.", [(match[1], match[2]) for match in REFERENCE.finditer(cells[-1])]


def _split(prose: str) -> Iterator[str]:
    """Sentences end with a mark before a blank; marks inside of code do not count."""
    plain = CODE.sub(lambda code: "_" * len(code[0]), prose)
    begin = 0
    for end in END.finditer(plain):
        yield prose[begin : end.end()].strip()
        begin = end.end()
    if prose[begin:]:
        yield prose[begin:]


@functools.cache
def functions(source: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions at the top of a module, by name; nothing is run."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.parse(source).body if isinstance(node, kinds)}


def source(path: str) -> str:
    """The text of a file in tests/; "" where there is none."""
    file = TESTS / path
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def problems(page: str, read: Callable[[str], str] = source) -> Iterator[str]:
    """What is wrong with a page of promises."""
    for sentence, references in sentences(page):
        if not END.search(CODE.sub("_", sentence)):
            yield f"not a sentence: {sentence}"
        if not references:
            yield f"no test: {sentence}"
        for path, name in references:
            test = functions(read(path)).get(name)
            if not name.startswith("test_") or test is None:
                yield f"no such test: {path}::{name}: {sentence}"
            elif any(NOT_HELD.match(ast.unparse(mark)) for mark in test.decorator_list):
                yield f"not held: {path}::{name} need not pass: {sentence}"


def test_every_sentence_names_a_test_that_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert list(problems(page)) == []
    assert len(list(sentences(page))) > 100


def test_every_test_written_for_the_page_is_named_by_it() -> None:
    named = {reference for _, references in sentences(PAGE.read_text(encoding="utf-8")) for reference in references}
    written = {
        (f"promises/{file.name}", name)
        for file in (TESTS / "promises").glob("test_*.py")
        for name in functions(file.read_text(encoding="utf-8"))
        if name.startswith("test_")
    }
    assert written <= named, written - named


# -- that it can fail --------------------------------------------------------------------------------------------------

GOOD = "# Title\n\n- Steps run,\n  in `order.` of time. `core/test_a.py::test_one`\n  `core/test_a.py::test_two`\n"
PLANTED = """
import pytest
def test_one(): ...
async def test_two(): ...
def helper(): ...
@pytest.mark.skipif(True)
def test_skipped(): ...
@pytest.mark.parametrize("x", [1])
@pytest.mark.xfail
def test_broken(): ...
class TestInside:
    def test_inside(self): ...
"""


def planted(path: str) -> str:
    return PLANTED if path == "core/test_a.py" else ""


def test_a_planted_page_is_fine_as_it_is() -> None:
    assert list(problems(GOOD, planted)) == []
    one, two = ("core/test_a.py", "test_one"), ("core/test_a.py", "test_two")
    assert list(sentences(GOOD)) == [("Steps run, in `order.` of time.", [one, two])]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- Steps run.", "no test: Steps run."),
        ("A paragraph too.", "no test: A paragraph too."),
        ("- First. Second. `core/test_a.py::test_one`", "no test: First."),
        ("- First. `core/test_a.py::test_one` Second.", "no test: Second."),
        ("- First. `core/test_a.py::test_one`\n- Second.\n", "no test: Second."),
        ("- First. `core/test_a.py::test_one`\n\nSecond, `no` test.", "no test: Second, `no` test."),
        ("- Steps run `core/test_a.py::test_one`", "not a sentence: Steps run"),
        ("- Steps run. `test_one`", "no test: Steps run."),
        ("- Steps run. `core/test_a.py::test_gone`", "no such test: core/test_a.py::test_gone: Steps run."),
        ("- Steps run. `core/test_b.py::test_one`", "no such test: core/test_b.py::test_one: Steps run."),
        ("- Steps run. `core/test_a.py::helper`", "no such test: core/test_a.py::helper: Steps run."),
        ("- Steps run. `core/test_a.py::test_inside`", "no such test: core/test_a.py::test_inside: Steps run."),
        ("- Steps run. `core/test_a.py::test_skipped`", "not held: core/test_a.py::test_skipped need not pass"),
        ("- Steps run. `core/test_a.py::test_broken`", "not held: core/test_a.py::test_broken need not pass"),
    ],
)
def test_a_planted_fault_is_found(text: str, problem: str) -> None:
    found = list(problems(GOOD + text, planted))
    assert [one for one in found if one.startswith(problem)], found


def test_a_test_without_a_sentence_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="a test before any sentence"):
        list(sentences("- `core/test_a.py::test_one`"))


def test_a_sentence_that_loses_its_test_is_found_in_the_page_itself() -> None:
    page = PAGE.read_text(encoding="utf-8")
    numbers = itertools.count()
    renamed = REFERENCE.sub(lambda match: f"`{match[1]}::{match[2]}_{next(numbers)}`", page)
    found = "\n".join(problems(renamed))
    assert next(numbers) > 100
    for number, match in enumerate(REFERENCE.finditer(page)):
        assert f"no such test: {match[1]}::{match[2]}_{number}: " in found


def test_each_row_of_a_table_is_held_to_its_tests() -> None:
    table = "| beside | what follows | tests |\n|---|---|---|\n| a wait | {} | {} |\n"
    fine = "`core/test_waits.py::test_a_deadline_ends_a_wait`"
    assert list(problems(table.format("it ends", fine))) == []
    assert list(problems(table.format("it ends", "`core/test_waits.py::test_nothing`")))
    assert list(problems(table.format("it ends", "")))
