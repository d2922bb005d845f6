"""The format in which durable stores keep a run: a flat mapping of texts, the same on SQLite and on Redis.

| field | what | written by |
|---|---|---|
| schema | the version of this format: 2 | the claim that begins the run |
| key, run_id, workflow, fingerprint (missing: None) | as in RunRecord | the same |
| key_text | if the codec hides: the codec's text of the key; `key` and `fingerprint` are HMACs (sealing.py) | the same |
| values (missing: {}) | JSON, with the codec's text of each initial value | the same |
| carrier (missing: {}) | JSON | the same |
| deadline (missing: None) | microseconds | the same |
| graph | as in RunRecord, an opaque text | every claim that is granted |
| owner | run_id of the claim that made the present owner | the same |
| by (missing: unknown), since (missing: 0) | JSON of the owner's host and pid, and when it claimed the run | the same |
| before_status, before_expires, before_by, before_since | as the present owner found them; the last two stay until the next claim that resumes the run | a claim that resumes a run |
| takeovers, retries, delay (missing: 0) | as in RunRecord; `delay`: how many microseconds after `expires` recovery may take over a running run | takeovers and endings; progress sets them to 0 |
| status; held and undoing (0 or 1; missing: 0) | as in RunRecord | |
| decision (missing: None) | resume, undo or cancel | an operator; the owner's first checkpoint removes `resume`; its ending, or its first checkpoint that undoes, removes the other two |
| reason (missing: None) | as in RunRecord | finish, and operators |
| not_before (missing: None) | microseconds since the epoch; 2^53 - 1: never | finish; claims and operators remove it |
| generation, fence, seq (missing: 0) | whole numbers | claims, operators, checkpoints |
| started; finished and expires (missing: None) | microseconds since the epoch, by the store's clock | |
| undone (missing: none) | JSON | finish |
| failed_step, error (missing: None) | JSON; an error as its type, message and traceback | checkpoint, finish |
| s: + name of a step | seq, a space, and JSON with the codec's text of the step's result | claim, checkpoint, finish |
| m: + name of a step | JSON of the value that was sent to it: the codec's text, when, by whom, and its `id` | send |
| received (missing: 0) | how many values were sent | send |
| waiting_for (missing: []) | JSON; ignored unless the status is waiting | finish |
| w: + key of the context | seq, a space, and JSON with the codec's text of the value; {}: deleted | checkpoint, finish |

With a codec that hides, each carrier, reason, error, list of errors and `id` is a JSON string of the codec's text.

A number is written in decimal digits. The seq stands in front of the JSON so that a store, in SQL or Lua, can compare
two texts of one field without parsing them. All JSON is ASCII.
"""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypedDict

from ..errors import DefinitionError, NotSerializable, StoreError, hashed_key, safe_repr, safe_str
from ..retry import CENTURY
from ..run import STARTING_REPORT, Sent
from ..status import Status
from .arguments import check_reason
from .base import Checkpoint, Claim, Ending, RunRecord, StepRecord, Write
from .codec import Codec, json_text as _json_text, quoted
from .decoding import (
    ENDINGS,
    INITIAL,
    NEVER,
    SCHEMA,
    SENT,
    STEP,
    WRITE,
    decode,
    refusing,
    sent_id,
    step_status,
)
from .error_texts import texts_of
from .parts import LARGEST, number
from .sealing import Sealing

__all__ = [
    "LARGEST",
    "MIB",
    "NEVER",
    "SENT",
    "STEP",
    "WRITE",
    "Encoding",
    "due",
    "microseconds",
    "number",
]

MIB: Final = 1024 * 1024
_INITIAL_VALUES_FACTOR: Final = 16  # all initial values of a run may take this many times as much as one value
_MESSAGE: Final = 1024  # characters of a message that are kept
_TRACEBACKS: Final = ("keep", "line")

_UNTYPED: Final[Mapping[str, Any]] = MappingProxyType({})
_BEGINS: Final = '{"status":"running","attempts":1}'


@functools.lru_cache(maxsize=64)  # leases have few different lengths, and each checkpoint converts one
def microseconds(seconds: float) -> int:
    """Convert seconds to the microseconds of durable stores. Leases and retentions last at most a century."""
    return round(min(seconds, CENTURY) * 1e6)


def due(now: int, retry_in: float) -> int | None:
    """The `not_before` of a run that ends at `now` and may be resumed in `retry_in` seconds. None: it may be resumed at
    once."""
    if retry_in <= 0:
        return None
    return NEVER if retry_in == math.inf else now + microseconds(retry_in)


class KnownWait(TypedDict):
    """What a store knows about a wait, as arguments of `decide_send`."""

    known: bool
    known_id: str | None
    step: Status | None


class Encoding:
    """Encodes runs as texts, and decodes them. As thread-safe as its codec.

    `codec` (None: JsonCodec) encodes what users put into a run. The text of each value takes at most `max_value_bytes`.
    `traceback`: "keep" the traceback of an error, or only its class and the "line" that raised it. Every method that
    encodes raises NotSerializable for what cannot be stored, before the store does any I/O.
    """

    def __init__(
        self,
        codec: Codec | None = None,
        max_value_bytes: int = MIB,
        traceback: Literal["keep", "line"] = "keep",
    ) -> None:
        self.sealing = Sealing(codec)
        if traceback not in _TRACEBACKS:
            raise DefinitionError(f'traceback= must be "keep" or "line", not {safe_repr(traceback)}.')
        if isinstance(max_value_bytes, bool) or not isinstance(max_value_bytes, int) or max_value_bytes < 1:
            raise DefinitionError(
                f"max_value_bytes= must be a whole number from 1 up, not {safe_repr(max_value_bytes)}."
            )
        self._hides = self.sealing.hides
        self._brief = traceback == "line"
        self._max_value_bytes = max_value_bytes

    def decode(self, key: str, fields: Mapping[str, Any], types: Mapping[str, Any] = _UNTYPED) -> RunRecord:
        """Decode a record from its fields. Without the fields of its steps and writes, the record is a head. Numbers
        may be ints already.

        `key`: the key, or the text under which the store finds the run. `types`: annotations by field name, for the
        codec. Raises CorruptRecord, which names the key, for anything that flowcore did not write.
        """
        return decode(key, fields, self.sealing, types)

    def decode_wait(
        self, record: RunRecord, name: str, sent: Sequence[Any] | None, step: Sequence[Any] | None
    ) -> KnownWait:
        """Decode what the store knows about the wait `name`. `sent` and `step`: a row, or part of a server's reply,
        whose first item is the stored text of the value or of the step; None if there is none. Raises CorruptRecord, as
        `decode` does."""
        with refusing(record.key):
            known_id = None if sent is None else sent_id(sent[0], name, self.sealing, record.run_id)
            return KnownWait(
                known=sent is not None, known_id=known_id, step=None if step is None else step_status(step[0])
            )

    def encode_claim(self, claim: Claim) -> dict[str, str]:
        """The fields of a fresh run, without those that the store itself counts (generation, fence and times). A claim
        that resumes a run changes the fields graph, owner and by."""
        fields = {
            "schema": str(SCHEMA),
            "key": self.sealing.lookup(claim.key),
            "run_id": claim.run_id,
            "owner": claim.run_id,
            "workflow": claim.workflow,
            "graph": claim.graph,
            "status": "queued" if claim.queued else "running",
        }
        if claim.owner is not None:
            fields["by"] = f'{{"host":{quoted(claim.owner.host)},"pid":{claim.owner.pid}}}'
        if claim.deadline is not None:
            fields["deadline"] = str(microseconds(claim.deadline))
        if self._hides:
            fields["key_text"] = self.sealing.seal(claim.key, claim.run_id, "key")
        if (fingerprint := self.sealing.fingerprint(claim.fingerprint)) is not None:
            fields["fingerprint"] = fingerprint
        if claim.values:
            fields["values"] = self.encode_values(claim.values, claim.run_id, claim.types)
        if carrier := _texts_only(claim.carrier):
            fields["carrier"] = self._own(_json_text(carrier), claim.run_id, "carrier")
        if claim.begins and not claim.queued:
            for seq, name in enumerate(claim.begins, 1):
                fields[STEP + name] = f"{seq} {_BEGINS}"
            fields["seq"] = str(len(claim.begins))
        return _of_unicode(fields, claim.run_id)

    def encode_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """The fields that a checkpoint changes: its steps and writes, the highest `seq` among them, and undoing,
        failed_step and error if they are given. After one that heals, the record has all that its owner knows."""
        run_id, seq = checkpoint.run_id, checkpoint.base if checkpoint.heals else 0
        fields: dict[str, str] = {}
        types = checkpoint.types
        for name, step in checkpoint.steps.items():
            seq = max(seq, step.seq)
            begins = step.report is STARTING_REPORT
            fields[STEP + name] = f"{step.seq} {_BEGINS}" if begins else self.encode_step(name, step, run_id, types)
        for key, write in checkpoint.writes.items():
            seq = max(seq, write.seq)
            name = _string_key(key, run_id)
            fields[WRITE + name] = self.encode_write(name, write, run_id, types)
        if seq:
            fields["seq"] = str(seq)
        if checkpoint.undoing:
            fields["undoing"] = "1"
        if checkpoint.failed_step is not None:
            fields["failed_step"] = _json_text(checkpoint.failed_step)
        if checkpoint.error is not None:
            fields["error"] = self._own(_json_text(texts_of(checkpoint.error, brief=self._brief)), run_id, "error")
        # The texts are JSON, so in ASCII.
        return fields if all(map(str.isascii, fields)) else _of_unicode(fields, run_id)

    def encode_ending(self, ending: Ending) -> dict[str, str]:
        """The fields that the end of a run changes: those of its last checkpoint, and status, held, retries, reason,
        undoing, waiting_for, undone, failed_step and error. An empty reason means None."""
        record = ending.record
        if record.status not in ENDINGS:
            raise StoreError(f"run {record.run_id} cannot end with the status {safe_repr(str(record.status))}.")
        fields = {} if ending.changes is None else self.encode_checkpoint(ending.changes)
        fields["status"], fields["held"] = str(record.status), str(int(record.held))
        fields["retries"], fields["reason"] = str(record.retries), self.encode_reason(record.key, record.reason)
        if record.status == Status.FAILURE:
            fields["undoing"] = "0"  # nothing was undone, so an operator may resume the run
        elif record.undoing:
            fields["undoing"] = "1"
        if record.waiting_for:
            fields["waiting_for"] = _json_text(record.waiting_for)
        fields["undone"] = _json_text(record.undone) if record.undone else "[]"
        fields["failed_step"] = "null" if record.failed_step is None else _json_text(record.failed_step)
        fields["error"] = (
            "null"
            if record.error is None
            else self._own(_json_text(texts_of(record.error, brief=self._brief)), record.run_id, "error")
        )
        return fields

    def encode_reason(self, key: str, reason: str | None) -> str:
        """The text of a reason, cut to a length that a list can show; empty for None. Raises DefinitionError if it is
        neither."""
        check_reason(reason)
        text = "" if reason is None else reason[:_MESSAGE].encode("utf-8", "replace").decode()
        return self.sealing.seal(text, self.sealing.lookup(key), "reason") if self._hides and text else text

    def encode_step(self, name: str, step: StepRecord, run_id: str, types: Mapping[str, Any] = _UNTYPED) -> str:
        """The text of one step."""
        # The JSON is built by hand: most steps have little to record, and a JSON encoder takes longer to start than
        # this takes in all.
        report = step.report
        text = f'{step.seq} {{"status":"{report.status}","attempts":{report.attempts}'
        if step.has_result:
            field = STEP + name
            result = self.dumped(step.result, types.get(field, Any), "the result of step", name, run_id, field)
            text += f',"result":{quoted(result)}'
        if step.effect:
            text += ',"effect":true'
        if step.carrier and (carrier := _texts_only(step.carrier)):
            text += f',"carrier":{self._own(_json_text(carrier), run_id, f"s.carrier:{name}")}'
        if report.waited is not None:
            text += f',"waited":{report.waited!r}'
        if report.ran is not None:
            text += f',"ran":{report.ran!r}'
        if report.backed_off is not None:
            text += f',"backed_off":{report.backed_off!r}'
        if report.failed:
            text += f',"failed":{report.failed}'
        if report.errors:
            errors = _json_text([_clipped(kind, message) for kind, message in report.errors])
            text += f',"errors":{self._own(errors, run_id, f"s.errors:{name}")}'
        if report.started is not None:
            text += f',"started":{report.started!r}'
        if report.retry_at is not None:
            text += f',"retry_at":{report.retry_at!r}'
        if report.until is not None:
            text += f',"until":{report.until!r}'
        if report.error is not None:
            text += f',"error":{self._own(_json_text(texts_of(report.error, brief=self._brief)), run_id, f"s.error:{name}")}'
        if report.undo is not None:
            text += f',"undo":"{report.undo}"'
        if report.undo_error is not None:
            text += f',"undo_error":{self._own(_json_text(texts_of(report.undo_error, brief=self._brief)), run_id, f"s.undo_error:{name}")}'
        if report.undo_started is not None:
            text += f',"undo_started":{report.undo_started!r}'
        if report.undo_finished is not None:
            text += f',"undo_finished":{report.undo_finished!r}'
        if report.attempt_times:
            text += f',"attempt_times":{_json_text(report.attempt_times)}'
        if report.completed_late is not None:
            text += f',"completed_late":"{report.completed_late}"'
        if report.completed_late_at is not None:
            text += f',"completed_late_at":{report.completed_late_at!r}'
        return text + "}"

    def encode_write(self, key: str, write: Write, run_id: str, types: Mapping[str, Any] = _UNTYPED) -> str:
        """The text of one write to the context."""
        if write.deleted:
            return f"{write.seq} {{}}"
        field = WRITE + key
        value = self.dumped(write.value, types.get(field, Any), "the value of", key, run_id, field)
        return f'{write.seq} {{"value":{quoted(value)}}}'

    def encode_sent(self, name: str, sent: Sent, run_id: str) -> str:
        """The text of a value that is sent to the wait `name`."""
        name = str.__str__(name)  # a member of an Enum is formatted as something else
        value = self.dumped(sent.value, Any, "the value sent to", name, run_id, SENT + name)
        carrier = self._own(_json_text(_texts_only(sent.carrier)), run_id, f"m.carrier:{name}")
        named = "null" if sent.id is None else self._own(_json_text(sent.id), run_id, f"m.id:{name}")
        text = (
            f'{{"value":{quoted(value)},"at":{round(sent.at * 1e6)},"host":{quoted(sent.host)},"pid":{sent.pid},'
            f'"id":{named},"carrier":{carrier}}}'
        )
        return _of_unicode({SENT + name: text}, run_id)[SENT + name]

    def encode_values(self, values: Mapping[Any, Any], run_id: str, types: Mapping[str, Any] = _UNTYPED) -> str:
        """The text of the context's initial values."""
        text = _json_text(
            {
                _string_key(key, run_id): self.dumped(
                    value, types.get(WRITE + key, Any), "the initial value of", key, run_id, INITIAL + key
                )
                for key, value in values.items()
            }
        )
        if len(text) > self._max_value_bytes * _INITIAL_VALUES_FACTOR:
            raise NotSerializable(
                f"the initial values of run {run_id} take {len(text):,} bytes together, and this store keeps at most "
                f"{self._max_value_bytes * _INITIAL_VALUES_FACTOR:,}: store them elsewhere and pass a reference, or make "
                "the store with a larger max_value_bytes=."
            )
        return text

    def copied(self, value: object, annotation: Any, what: str, name: str, run_id: str) -> Any:
        """A value as it would be read back from the store."""
        text = self.dumped(value, annotation, what, name, run_id, name)
        return self.sealing.loads(text, annotation, run_id, name)

    def _own(self, text: str, run_id: str, field: str) -> str:
        """Return JSON of flowcore's own that may contain users' data. If the codec hides it, return the codec's text of
        it."""
        return self.sealing.seal(text, run_id, field) if self._hides else text

    def dumped(self, value: object, annotation: Any, what: str, name: str, run_id: str, field: str) -> str:
        """The codec's text of a value. If it cannot be stored, `what` and `name` say in the error which value it is."""
        try:
            text = self.sealing.dumps(value, annotation, run_id, field)
        except NotSerializable as error:
            raise NotSerializable(
                f"{what} {safe_repr(name)} in run {run_id} cannot be stored: {safe_str(error)}"
            ) from error
        except Exception as error:
            raise NotSerializable(
                f"{what} {safe_repr(name)} in run {run_id} cannot be stored: dumps() of the store's codec= raised "
                f"{type(error).__name__}: {safe_str(error, 200)}."
            ) from error
        if not isinstance(text, str):
            raise NotSerializable(
                f"{what} {safe_repr(name)} in run {run_id} cannot be stored: dumps() of the store's codec= must return a "
                f"str, not a {type(text).__name__}."
            )
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if size > self._max_value_bytes:
            raise NotSerializable(
                f"{what} {safe_repr(name)} in run {run_id} takes {size:,} bytes, and this store keeps at most "
                f"{self._max_value_bytes:,}: store it elsewhere and keep a reference, or make the store with a larger "
                "max_value_bytes=."
            )
        return text


def _of_unicode(fields: dict[str, str], run_id: str) -> dict[str, str]:
    """Return the same fields if all of them can be encoded as UTF-8, and else raise NotSerializable. JSON always can,
    because it is ASCII."""
    if all(map(str.isascii, fields)) and all(map(str.isascii, fields.values())):
        return fields
    for name, text in fields.items():
        if not (name.isascii() and text.isascii()):
            try:
                name.encode()
                text.encode()
            except UnicodeEncodeError:
                what = {STEP: "the step name", WRITE: "the context key", SENT: "the wait name"}.get(
                    name[:2], f"its {name}"
                )
                which = hashed_key(text) if name == "key" else safe_repr(name[2:] if ":" in name[:2] else text)
                raise NotSerializable(
                    f"run {safe_repr(run_id)} cannot be stored: {what} {which} contains a lone surrogate, which cannot be encoded "
                    "as UTF-8. Choose another.",
                    key=text if name == "key" else None,
                ) from None
    return fields


def _string_key(key: object, run_id: str) -> str:
    if not isinstance(key, str):
        raise NotSerializable(
            f"the context key {safe_repr(key)} in run {run_id} cannot be stored: a durable store keeps values under strings, "
            "so use a string."
        )
    return key


def _clipped(kind: str, message: str) -> tuple[str, str]:
    return kind[:_MESSAGE], message[:_MESSAGE]


def _texts_only(carrier: Mapping[Any, Any]) -> dict[str, str]:
    """The entries of a carrier that are texts. Hooks provide the carrier, and a hook must not make a run fail, so other
    entries are left out."""
    return {key: text for key, text in carrier.items() if isinstance(key, str) and isinstance(text, str)}
