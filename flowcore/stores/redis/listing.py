"""Listings over all shards in one order: the entries of the shards are merged, and few more are read than needed."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ...errors import DefinitionError, safe_repr
from .lua import DIGEST, Script

__all__ = ["Entry", "Listing", "cursor_of", "parsed_cursor"]

_WINDOW: Final = 1000  # the most entries that a script reads in one shard: Redis serves no other client meanwhile
_LEAST: Final = 4  # the fewest entries that a shard is asked for
_REVERSED: Final = bytes(range(255, -1, -1))
Cursor: TypeAlias = tuple[bytes, bytes]
"""score and run id of the last run that was returned; empty at the beginning"""


@dataclass(slots=True)
class Entry:
    """A run in the index. `score` is a number as Redis writes it."""

    shard: int
    run_id: bytes
    digest: bytes
    score: str
    workflow: bytes = b""


@dataclass(slots=True)
class _Shard:
    cursor: Cursor | None
    """where to continue; None at the end"""
    entries: list[Entry] = field(default_factory=list[Entry])
    """read and not yet taken, the next one last"""
    replies: int = 0


class Listing:
    """How far a listing has been read in each shard. `newest`: the highest score comes first, else the lowest."""

    def __init__(
        self,
        script: Script,
        names: Sequence[bytes],
        after: Cursor,
        arguments: Sequence[Any],
        shards: Iterable[int],
        *,
        newest: bool = False,
    ) -> None:
        self.script = script
        self.names = names
        self.calls: list[tuple[list[int], Any]] = []
        """calls to send, each with the shards that it is about"""
        self._arguments = arguments
        self._newest = newest
        self._shards = {shard: _Shard(after) for shard in shards}

    def wanting(self) -> list[tuple[Cursor, list[int]]]:
        """Return the shards that must be read further before more entries can be taken, by the cursor to start from."""
        found: dict[Cursor, list[int]] = {}
        for number, shard in self._shards.items():
            if shard.cursor is not None and not shard.entries:
                found.setdefault(shard.cursor, []).append(number)
        return list(found.items())

    def arguments_from(self, cursor: Cursor, shards: Sequence[int], number: int) -> list[Any]:
        """Return the script's arguments for these shards, when `number` entries are wanted of all shards together. A
        shard is asked for twice as many each time: few entries are read in vain, and a shard that has most of them
        needs few calls."""
        share = max(2 * number // len(self._shards), _LEAST) << min(self._shards[shards[0]].replies, 10)
        return [*cursor, min(share, max(number, _LEAST), _WINDOW), _WINDOW, *self._arguments]

    def add(self, replies: Sequence[Sequence[Sequence[bytes]]]) -> None:
        """Add the entries in `replies`, one reply for each of `calls`, and clear `calls`."""
        calls, self.calls = self.calls, []
        for (shards, _), answers in zip(calls, replies, strict=True):
            for number, (more, *texts) in zip(shards, answers, strict=True):
                shard = self._shards[number]
                score, _, run_id = more.partition(b" ")
                shard.cursor = (score, run_id) if more else None
                shard.replies += 1
                shard.entries = [
                    Entry(number, run_id, text[:DIGEST], score.decode(), text.partition(b":")[2])
                    for run_id, text, score in zip(texts[::3], texts[1::3], texts[2::3], strict=True)
                ][::-1]

    def take(self, number: int) -> list[Entry]:
        """Remove and return the next `number` entries, or fewer if a shard must be read first or none are left."""
        taken: list[Entry] = []
        if any(shard.cursor is not None and not shard.entries for shard in self._shards.values()):
            return taken
        heap = [(self._place(shard.entries[-1]), at) for at, shard in self._shards.items() if shard.entries]
        heapq.heapify(heap)
        while heap and len(taken) < number:
            at = heap[0][1]
            shard = self._shards[at]
            taken.append(shard.entries.pop())
            if shard.entries:
                heapq.heapreplace(heap, (self._place(shard.entries[-1]), at))
            elif shard.cursor is None:
                heapq.heappop(heap)
            else:
                break
        return taken

    def _place(self, entry: Entry) -> tuple[float, bytes]:
        score = float(entry.score)
        return (-score, entry.run_id.translate(_REVERSED) + b"\xff") if self._newest else (score, entry.run_id)


def cursor_of(entry: Entry) -> str:
    """Return the value of `after=` with which a listing continues after this run."""
    return f"{entry.score} {entry.run_id.decode(errors='replace')}"


def parsed_cursor(after: str | None) -> Cursor:
    """Return the score and the run id in a value of `after=`. Raises DefinitionError if it is not a cursor."""
    if after is None:
        return b"", b""
    if not isinstance(after, str) or not re.match(r"[\d.e+-]+ ", after):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"after= must be the cursor of a page, not {safe_repr(after)}.")
    score, _, run_id = after.partition(" ")
    return score.encode(), run_id.encode("utf-8", "surrogatepass")
