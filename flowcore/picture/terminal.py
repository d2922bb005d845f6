"""The waterfall of a run as lines of text, for a terminal."""

from __future__ import annotations

from typing import Final

from .timeline import Kind, Row, Timeline, in_words, milliseconds

__all__ = ["gantt"]

_BLOCKS: Final = {
    Kind.WAIT: "╌",
    Kind.WORK: "█",
    Kind.FAILED: "▓",
    Kind.BACKOFF: "·",
    Kind.UNDO: "◀",
    Kind.UNDO_FAILED: "✖",
    Kind.LATE: "░",
}
_ASCII: Final = {
    Kind.WAIT: "-",
    Kind.WORK: "#",
    Kind.FAILED: "x",
    Kind.BACKOFF: ".",
    Kind.UNDO: "<",
    Kind.UNDO_FAILED: "!",
    Kind.LATE: "?",
}
_NAME: Final = 24


def gantt(timeline: Timeline, *, width: int = 100, ascii: bool = False) -> str:  # noqa: A002 - what it is
    """Return the waterfall with a line for each step, `width` characters wide. `ascii`: use ASCII characters only."""
    span = max([timeline.seconds, *(bar.end for row in timeline.rows for bar in row.bars), 1e-9])
    columns = max(20, width - _NAME - 12)
    blocks = _ASCII if ascii else _BLOCKS
    lines = [_line(row, span, columns, blocks) for row in timeline.rows]
    legend = "  ".join(f"{blocks[kind]} {kind}" for kind in Kind if any(_has(row, kind) for row in timeline.rows))
    return "\n".join([in_words(timeline), *lines, f"  {legend}; * critical path"])


def _line(row: Row, span: float, columns: int, blocks: dict[Kind, str]) -> str:
    cells = [" "] * columns
    for bar in row.bars:
        first = min(columns - 1, int(bar.start / span * columns))
        last = max(first + 1, min(columns, round(bar.end / span * columns)))
        cells[first:last] = blocks[bar.kind] * (last - first)
    name = row.name if row.name.isprintable() else ascii_only(row.name)
    name = name if len(name) < _NAME else f"{name[: _NAME - 4]}..."
    took = milliseconds(sum(bar.seconds for bar in row.bars)) if row.bars else row.status
    return f"{'*' if row.critical else ' '} {name:<{_NAME - 2}}{''.join(cells)} {took}"


def ascii_only(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii").replace("\n", "\\n").replace("\r", "\\r")


def _has(row: Row, kind: Kind) -> bool:
    return any(bar.kind is kind for bar in row.bars)
