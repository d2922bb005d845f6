"""What `MemoryStore(strict=True)` keeps: values that passed through the codec, as a durable store would return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import NotSerializable
from .base import Checkpoint, Claim, Ending, RunRecord, StepRecord, Write
from .codec import Codec
from .encoding import STEP, WRITE, Encoding

__all__ = ["Strict"]


class Strict:
    """Copies what is sent to a store: each value is encoded and decoded. Thread-safe. Raises NotSerializable for a
    value that cannot be stored."""

    def __init__(self, codec: Codec | None = None) -> None:
        self.encoding = Encoding(codec)

    def claim(self, claim: Claim) -> Claim:
        """The claim with copies of its initial values."""
        run_id, types = claim.run_id, claim.types
        self.encoding.encode_values(claim.values, run_id, types)  # refuses keys that are not strings
        return replace(
            claim,
            values={
                key: self.encoding.copied(value, types.get(WRITE + key, Any), "the initial value of", key, run_id)
                for key, value in claim.values.items()
            },
        )

    def record(self, record: RunRecord, types: Mapping[str, Any]) -> RunRecord:
        """The record with copies of its results and values, for a claim of a workflow with these annotations."""
        return replace(
            record,
            results={
                name: self._copied(value, types.get(STEP + name, Any), name, record.run_id)
                for name, value in record.results.items()
            },
            values={
                key: self._copied(value, types.get(WRITE + key, Any), key, record.run_id)
                for key, value in record.values.items()
            },
        )

    def _copied(self, value: Any, annotation: Any, name: str, run_id: str) -> Any:
        try:
            return self.encoding.copied(value, annotation, "the value of", name, run_id)
        except NotSerializable:  # the value was written with an annotation that the claim lacks
            return value

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with copies of its results and writes."""
        self.encoding.encode_checkpoint(checkpoint)
        run_id, types = checkpoint.run_id, checkpoint.types
        return replace(
            checkpoint,
            steps={name: self._step(name, step, run_id, types) for name, step in checkpoint.steps.items()},
            writes={key: self._write(key, write, run_id, types) for key, write in checkpoint.writes.items()},
        )

    def sent(self, value: Any, name: str, run_id: str) -> Any:
        """A copy of a value that is sent to the wait `name`."""
        return self.encoding.copied(value, Any, "the value sent to", name, run_id)

    def ending(self, ending: Ending) -> Ending:
        """The ending with copies of the results and writes in its changes, from which a durable store takes them."""
        return ending if ending.changes is None else replace(ending, changes=self.checkpoint(ending.changes))

    def _step(self, name: str, step: StepRecord, run_id: str, types: Mapping[str, Any]) -> StepRecord:
        if not step.has_result:
            return step
        annotation = types.get(STEP + name, Any)
        return replace(step, result=self.encoding.copied(step.result, annotation, "the result of step", name, run_id))

    def _write(self, key: str, write: Write, run_id: str, types: Mapping[str, Any]) -> Write:
        if write.deleted:
            return write
        annotation = types.get(WRITE + key, Any)
        return replace(write, value=self.encoding.copied(write.value, annotation, "the value of", key, run_id))
