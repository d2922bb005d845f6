"""The waterfall of a run as lines of text, for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
_PAUSES: Final = (Kind.WAIT, Kind.BACKOFF)
_NAME: Final = 24


def _plain(text: str, _kind: Kind) -> str:
    return text


def gantt(
    timeline: Timeline,
    *,
    width: int = 100,
    ascii: bool = False,  # noqa: A002 - what it is
    paint: Callable[[str, Kind], str] = _plain,
) -> str:
    """Return the waterfall with a line for each step, `width` characters wide. `ascii`: use ASCII characters only.
    `paint` returns a bar's characters with the escape codes that colour a bar of this kind."""
    span = max([timeline.seconds, *(bar.end for row in timeline.rows for bar in row.bars), 1e-9])
    columns = max(20, width - _NAME - 12)
    blocks = _ASCII if ascii else _BLOCKS
    lines = [_line(row, span, columns, blocks, paint) for row in timeline.rows]
    legend = "  ".join(
        f"{paint(blocks[kind], kind)} {kind}" for kind in Kind if any(_has(row, kind) for row in timeline.rows)
    )
    text = "\n".join([in_words(timeline), *lines, f"  {legend}; * critical path"])
    return text.encode("ascii", "backslashreplace").decode("ascii") if ascii else text


def _line(row: Row, span: float, columns: int, blocks: dict[Kind, str], paint: Callable[[str, Kind], str]) -> str:
    cells: list[Kind | None] = [None] * columns
    places: list[tuple[Kind, int, int]] = []
    for bar in row.bars:
        first = min(columns - 1, int(bar.start / span * columns))
        last = max(first + 1, min(columns, round(bar.end / span * columns)))
        cells[first:last] = [bar.kind] * (last - first)
        places.append((bar.kind, first, last))
    for kind, first, last in places:  # An attempt is seen, however short it is and whatever follows in its cell.
        if kind not in _PAUSES and kind not in cells[first:last]:
            cells[first] = kind
    name = row.label if len(row.label) < _NAME else f"{row.label[: _NAME - 4]}..."
    took = milliseconds(sum(bar.seconds for bar in row.bars)) if row.bars else row.status
    drawn = "".join(
        " " * len(same) if kind is None else paint(blocks[kind] * len(same), kind)
        for kind, same in ((kind, list(group)) for kind, group in itertools.groupby(cells))
    )
    return f"{'*' if row.critical else ' '} {name:<{_NAME - 2}}{drawn} {took}"


def _has(row: Row, kind: Kind) -> bool:
    return any(bar.kind is kind for bar in row.bars)
