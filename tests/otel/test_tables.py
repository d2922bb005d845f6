"""The documents say what the catalogue says."""

from pathlib import Path

import pytest

from flowcore_otel import names, tables

README = Path(__file__).parents[2] / "README.md"


def test_the_written_tables_are_current() -> None:
    # If this fails: python -m flowcore_otel.tables README.md
    assert tables.DOCUMENT.read_text(encoding="utf-8") == tables.document()
    readme = README.read_text(encoding="utf-8")
    assert tables.rewritten(readme) == readme


def test_a_document_without_marks_is_refused() -> None:
    assert tables.rewritten(f"a\n{tables.MARKS[0]}\nstale\n{tables.MARKS[1]}\nb").count("stale") == 0
    for text in ("none", tables.MARKS[0], f"{tables.MARKS[1]} {tables.MARKS[0]}"):
        with pytest.raises(ValueError, match="lacks the line <!-- catalogue -->"):
            tables.rewritten(text)


def test_they_have_all_there_is_and_each_row_its_columns() -> None:
    for metric in names.METRICS:
        assert f"`{metric.prometheus}`" in tables.short()
    text = tables.document()
    listed = [*names.ATTRIBUTES, *names.LOG_EVENTS, *names.LABELS, *(f"{action} {{…}}" for action in names.SPANS)]
    listed += [name for metric in names.METRICS for name in (metric.name, metric.prometheus)]
    assert [name for name in listed if f"`{name}`" not in text] == []
    for block in text.split("\n\n"):
        columns = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(columns) <= 1
