"""How the verbs of the Redis stores use the server: keys, shards, scripts and their replies.

Each verb is a generator: it yields commands for the server, receives their replies, and returns the verb's result. A
reply is what the client returned, or the exception that it raised. This module does no I/O; store.py does.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from ...errors import CorruptRecord, DefinitionError, StoreError, hashed_key, safe_repr
from ...retry import Duration, seconds
from ..base import RunRecord
from ..codec import Codec
from ..encoding import Encoding, microseconds
from . import doctor, index_scripts, operator_scripts
from .errors import is_forbidden, is_unknown_command, is_unknown_script, refuse
from .lua import DIGEST, MAGIC, Script

__all__ = [
    "INDEX_KEYS",
    "PAGE",
    "Answer",
    "Call",
    "Calls",
    "Command",
    "Exchange",
    "Part",
    "as_bytes",
    "corrupt",
    "digest_of",
    "in_pages",
    "unpacked",
]

T = TypeVar("T")
Part: TypeAlias = "str | bytes | int"
Command: TypeAlias = "tuple[Part, ...]"
Exchange: TypeAlias = Generator[list[Command], list[Any], T]
"""A generator that yields commands to send together, receives their replies, and returns a T."""
Call: TypeAlias = "tuple[Sequence[bytes], Sequence[Part]]"
"""a script's KEYS and ARGV"""

INDEX_KEYS: Final = (b"open", b"ended", b"started", b"index", b"statuses")
"""the parts of a shard's index: see lua.py"""
PAGE: Final = 200
"""the most records that one script reads, because Redis serves no other client while a script runs"""
# How many idempotency keys have their Redis keys cached, and the most characters of such a key. Both are limited, so
# that the keys that users send cannot fill the memory.
_CACHED: Final = 1000
_SHORT: Final = 1024
_AT_ONCE: Final = 256  # the most shards that one script reads
_log = logging.getLogger("flowcore")


@dataclass(slots=True)
class Answer:
    """What a script returned about a record. `now`: microseconds by the server's clock, or by this process's clock if the
    user may not call TIME."""

    word: str
    now: int
    fields: dict[str, str]

    @property
    def age(self) -> float:
        """Seconds since the run began."""
        return max(0, self.now - int(self.fields["started"])) / 1e6


class Calls:
    """What all verbs share: building keys and commands, and reading replies. Its only state is caches and flags."""

    def __init__(
        self,
        store: str,
        prefix: str,
        retention: Duration,
        codec: Codec | None,
        max_value_bytes: int,
        traceback: Literal["keep", "line"],
        shards: int,
        *,
        cluster: bool = False,
    ) -> None:
        if not isinstance(prefix, str) or not prefix or not _is_text(prefix):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"{store}(prefix=) must be a string that is not empty, not {safe_repr(prefix)}.")
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 16384:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"{store}(shards=) must be a whole number from 1 to 16,384, not {safe_repr(shards)}.")
        self._encoding = Encoding(codec, max_value_bytes, traceback)
        self._lookup = self._encoding.sealing.lookup
        self._hides = self._encoding.sealing.hides
        self.retention = seconds(retention, f"{store}(retention=)")
        self._retention = max(1, microseconds(self.retention) // 1000)
        self._shards = shards
        self._at_once = 1 if cluster else _AT_ONCE  # in a cluster, a script may use keys of one slot only
        # The prefix is percent-encoded: a "}" would end the part of a key that determines its slot, a ":" would end the
        # prefix, and some characters are special in the pattern of an ACL rule.
        encoded = quote(prefix, safe="")
        self._prefixes = [f"{{{encoded}:{shard}}}:".encode() for shard in range(shards)]
        self._opens = [(some, tuple(keys)) for some, keys in self._over_shards(range(shards), b"open")]
        self._entered = self._examined = self._looked = False
        self._unreadable: set[str] = set()  # hashes of the run ids whose records were logged as unreadable
        self._known_keys = functools.lru_cache(_CACHED)(self._keys_of)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _keys(self, lookup: str) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
        return self._known_keys(lookup) if len(lookup) <= _SHORT else self._keys_of(lookup)

    def _keys_of(self, lookup: str) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
        """Return the Redis keys of a look-up text: the record, and open, ended, started, index, statuses of its
        shard."""
        digest = digest_of(as_bytes(lookup))
        shard = self._shard(digest)
        prefix = self._prefixes[shard]
        opened, ended, started, index, statuses = (prefix + name for name in INDEX_KEYS)
        return self._run_key(shard, digest), opened, ended, started, index, statuses

    def _shard(self, digest: bytes) -> int:
        return int.from_bytes(base64.urlsafe_b64decode(digest[:8]), "big") % self._shards

    def _run_key(self, shard: int, digest: bytes) -> bytes:
        return self._prefixes[shard] + b"run:" + digest

    def _over_shards(self, shards: Iterable[int], *names: bytes) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield these keys of these shards, in groups of as many shards as one script may read."""
        for some in in_pages(list(shards), self._at_once):
            yield some, [self._prefixes[shard] + name for shard in some for name in names]

    # -- before the first use ------------------------------------------------------------------------------------------

    def _enter(self, *, writes: bool) -> Exchange[bool]:
        """Check that the prefix was set up with this number of shards and this codec's secret: with others, keys would
        not be found. With `writes`, set up a new prefix. Returns False if a secret is missing, because the
        prefix was not set up yet."""
        sealing = self._encoding.sealing
        names = [self._prefixes[0] + b"shards", self._prefixes[0] + b"secret"]
        secret = sealing.secret_text() if writes and sealing.hides else ""
        call: Call = (names, [self._shards, "1" if writes else "", secret])
        ((known, kept),) = yield from self._run_all(operator_scripts.ENTER, [call], reads=not writes)
        if known not in {b"", str(self._shards).encode()}:
            raise StoreError(
                f"this prefix was set up with {safe_repr(known.decode(errors='replace'))} shards, and this store has "
                f"{self._shards}, so it would not find its runs. Pass shards= with the same number, or choose another prefix=."
            )
        text = kept.decode(errors="replace") or None
        if sealing.use(text, used=known != b"", where="this prefix") and writes and text != secret:
            # The secret is encoded anew, so that it is never the last text that needs an old key of the codec.
            (reply,) = yield [("SET", names[1], as_bytes(sealing.secret_text()))]
            if isinstance(reply, Exception):
                refuse(reply)
        if not writes:
            return text is not None or not sealing.hides
        self._entered = True
        if not self._examined:
            self._examined = True  # set first: other claims may begin meanwhile, and need not examine it too
            with contextlib.suppress(StoreError):  # a failed examination must not stop runs
                known = yield from doctor.examine()
                if risks := doctor.risks(known):
                    _log.warning("this Redis can lose the records of runs: %s.", "; ".join(risks))
        return True

    # -- scripts -------------------------------------------------------------------------------------------------------

    def _run(self, script: Script, key: str, keys: Sequence[bytes], *arguments: Part) -> Exchange[Answer]:
        """Run a script on the record of `key`."""
        reply = yield from self._reply(script, key, (len(keys), *keys, *map(as_bytes, arguments)))
        return self._answer(reply, key)

    def _reply(self, script: Script, key: str, tail: Command) -> Exchange[Any]:
        """Run a script and return its reply. The script's text is sent only if the server does not know it yet."""
        (reply,) = yield [("EVALSHA", script.sha, *tail)]
        if isinstance(reply, Exception):
            if is_unknown_script(reply):
                (reply,) = yield [("EVAL", script.text, *tail)]
            if isinstance(reply, Exception):
                refuse(reply, key)
        return reply

    def _run_all(
        self, script: Script, calls: Sequence[Call], key: str = "", *, reads: bool = False
    ) -> Exchange[list[Any]]:
        """Run a script several times, in one round trip per node, and one more if a node does not know the script yet.
        `reads`: the script changes nothing, so a user without the right to write may run it."""
        if not calls:
            return []
        tails: list[Command] = [(len(keys), *keys, *map(as_bytes, arguments)) for keys, arguments in calls]
        replies = yield [("EVALSHA", script.sha, *tail) for tail in tails]
        yield from self._resend(replies, is_unknown_script, "EVAL", script.text, tails)
        if reads and any(map(is_forbidden, replies)):
            before = list(replies)
            yield from self._resend(replies, is_forbidden, "EVAL_RO", script.text, tails)
            # If EVAL_RO is unknown (before Redis 7) or forbidden too, the first refusal is the one that says why.
            replies[:] = [
                old if is_unknown_command(new) or is_forbidden(new) else new
                for old, new in zip(before, replies, strict=True)
            ]
        for reply in replies:
            if isinstance(reply, Exception):
                refuse(reply, key)
        return replies

    def _resend(self, replies: list[Any], which: Any, name: str, script: str, tails: list[Command]) -> Exchange[None]:
        """Send the scripts whose replies match `which` again, by the command `name`, and replace these replies."""
        failed = [index for index, reply in enumerate(replies) if which(reply)]
        if failed:
            again = yield [(name, script, *tails[index]) for index in failed]
            for index, reply in zip(failed, again, strict=True):
                replies[index] = reply

    # -- records -------------------------------------------------------------------------------------------------------

    def _answer(self, reply: list[bytes], key: str) -> Answer:
        """Read what a script returned about the record of `key`. Raises CorruptRecord."""
        try:
            word, now, *texts = [part.decode() for part in (reply if reply[2:3] != [b"packed"] else unpacked(reply))]
        except UnicodeDecodeError as error:
            raise corrupt(key, "it contains bytes that are not UTF-8") from error
        except ValueError as error:
            raise corrupt(key, "it is a Redis string, not a hash") from error
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        fields.pop("listed", None)
        if word == "corrupt":
            if "kind" in fields:
                raise corrupt(key, f"it is a Redis {fields['kind']}, not a hash")
            # For most of these records, decoding raises CorruptRecord and says what is wrong.
            self._encoding.decode(key, fields)
            raise corrupt(
                key,
                f"it has the status {safe_repr(fields['status'])}, but is not held, or a number in it is too large",
            )
        return Answer(word, int(now) or round(time.time() * 1e6), fields)

    def _read(self, runs: Sequence[tuple[int, bytes]], *, heads: bool) -> Exchange[list[list[bytes]]]:
        """Return the server's replies about these records, which are given by shard and digest."""
        by_shard: dict[int, list[int]] = {}
        for position, (shard, _) in enumerate(runs):
            by_shard.setdefault(shard, []).append(position)
        groups: list[list[int]] = []
        for some in in_pages(list(by_shard), self._at_once):
            groups += in_pages([position for shard in some for position in by_shard[shard]], PAGE)
        calls: list[Call] = [
            ([self._run_key(*runs[position]) for position in group], ["1" if heads else ""]) for group in groups
        ]
        replies = yield from self._run_all(index_scripts.READ, calls, reads=True)
        found: list[list[bytes]] = [[]] * len(runs)
        for group, reply in zip(groups, replies, strict=True):
            for position, one in zip(group, reply, strict=True):
                found[position] = one
        return found

    def _field(self, reply: Sequence[bytes], name: bytes) -> bytes:
        """Return one field of a reply, or b"" if there is none. Raises ValueError for a broken record."""
        parts = unpacked(reply) if reply[2:3] == [b"packed"] else reply
        return dict(zip(parts[2::2], parts[3::2], strict=True)).get(name, b"")

    def _record(self, key: str, reply: list[bytes]) -> RunRecord | None:
        answer = self._answer(reply, key)
        return None if answer.word == "missing" else self._encoding.decode(key, answer.fields)


def digest_of(key: bytes) -> bytes:
    """Return the digest of an idempotency key, which the Redis key of its record ends with."""
    return base64.urlsafe_b64encode(hashlib.sha256(key).digest())[:DIGEST]


def unpacked(reply: Sequence[bytes]) -> list[bytes]:
    """Return a reply with a packed record in the form of one with a hash. Raises ValueError for any other string."""
    if not reply[3].startswith(MAGIC.encode()):
        raise ValueError("not a packed record")
    texts = _message_pack(reply[3], len(MAGIC))
    names = texts[::2]
    if b"owner" not in names and b"run_id" in names:
        texts += [b"owner", texts[2 * names.index(b"run_id") + 1]]
    return [*reply[:2], *texts, *reply[4:]]


def _message_pack(text: bytes, at: int) -> list[bytes]:
    """Decode the list of texts that begins at `at`. Lua's MessagePack writes each length in its shortest form."""

    def length(short: int, mask: int, longer: dict[int, int]) -> int:
        nonlocal at
        first = text[at] if at < len(text) else -1
        at += 1
        if first & ~mask == short:
            return first & mask
        if first not in longer:
            raise ValueError("not a packed record")
        size = longer[first]
        at += size
        return int.from_bytes(text[at - size : at], "big")

    found: list[bytes] = []
    for _ in range(length(0x90, 0x0F, {0xDC: 2, 0xDD: 4})):
        size = length(0xA0, 0x1F, {0xD9: 1, 0xDA: 2, 0xDB: 4})
        at += size
        found.append(text[at - size : at])
    if at != len(text) or len(found) % 2:
        raise ValueError("not a packed record")
    return found


def corrupt(key: str, why: str) -> CorruptRecord:
    return CorruptRecord(
        f"the record of key {hashed_key(key)} is corrupted: {why}. It was not modified; repair it by hand, or discard it with "
        "store.release(error.key, force=True).",
        key=key,
    )


def as_bytes(part: Part) -> bytes:
    """Encode a part of a command as UTF-8, whatever the client's encoding. Lone surrogates occur in look-ups only."""
    return part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")


def in_pages(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
