"""The documents say what the catalogue says."""

from flowcore_otel import names, tables


def test_the_written_tables_are_current() -> None:
    # If this fails: python -m flowcore_otel.tables
    assert tables.DOCUMENT.read_text(encoding="utf-8") == tables.document()


def test_they_have_all_there_is_and_each_row_its_columns() -> None:
    text = tables.document()
    listed = [*names.ATTRIBUTES, *names.LOG_EVENTS, *names.LABELS, *(f"{action} {{…}}" for action in names.SPANS)]
    listed += [name for metric in names.METRICS for name in (metric.name, metric.prometheus)]
    assert [name for name in listed if f"`{name}`" not in text] == []
    for block in text.split("\n\n"):
        columns = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(columns) <= 1
