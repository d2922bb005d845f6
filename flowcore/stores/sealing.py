"""Codecs that hide: a store gives them not only values, but also keys, errors, reasons and carriers.

A store with such a codec draws a secret of its own, 32 random bytes, and stores it through the codec. The store finds a
key by its HMAC under that secret, and compares the fingerprints of two requests by their HMACs. Neither keys nor
initial values can be guessed from what is stored.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, NamedTuple

from ..errors import DefinitionError, NotSerializable, StoreError, safe_str
from .arguments import check_key
from .codec import Codec, JsonCodec, quoted

__all__ = ["Place", "Sealing"]

_SECRET: Final = 32  # bytes
_VERBS: Final = ("dumps", "loads")
_PASSED_ON: Final = (Exception, SystemExit, KeyboardInterrupt)
"""errors of a codec that are raised as they are"""


class Place(NamedTuple):
    """The place where a text is stored. A codec that binds a ciphertext to its place can notice that it was moved."""

    run: str
    """the run's id; for a reason, which operators write too, the HMAC of the key; empty for the store's secret"""
    field: str
    """`s:` with a step: its result; `w:` with a key of the context: what a step wrote; `v:` with a key: an initial
    value; `key`, `error`, `carrier`, `reason`; `s.error:`, `s.errors:`, `s.undo_error:` or `s.carrier:` with a step;
    `m:`, `m.id:` or `m.carrier:` with a step: a value that was sent to it; `secret`: that of the store itself. On
    Temporal, `v:` is also for what a step wrote, and `s:` for a value that was sent."""


class Sealing:
    """A store's codec, with all the ways in which the store uses it. As thread-safe as the codec. `hides`: whether the
    codec also encodes keys, errors, reasons and carriers.

    Raises DefinitionError for an object that is not a codec.
    """

    def __init__(self, codec: Codec | None) -> None:
        if codec is not None and not all(_takes(getattr(codec, verb, None), 2, 3) for verb in _VERBS):
            # It is not quoted, because it may be the key of a codec that encrypts.
            raise DefinitionError(
                "codec= must have the methods dumps(value, type) and loads(text, type), unlike an object of type "
                f"{type(codec).__name__}."
            )
        if isinstance(codec, type) and any(inspect.isfunction(inspect.getattr_static(codec, verb)) for verb in _VERBS):
            name = codec.__name__  # its methods would take the value for `self`
            raise DefinitionError(f"codec= must be a codec, not the class {name}. Make one: {name}(...).")
        self._codec: Any = JsonCodec() if codec is None else codec
        self._dumps_in_place: bool = _takes(self._codec.dumps, 3)
        self._loads_in_place: bool = _takes(self._codec.loads, 3)
        # The class itself must say so: a subclass that encrypts does not inherit `plain`.
        self.hides = codec is not None and not vars(type(codec)).get("plain", False)
        self._secret = b""
        if self.hides:
            from secrets import token_bytes

            self._secret = token_bytes(_SECRET)

    def dumps(self, value: object, annotation: Any, run: str, field: str) -> Any:
        """Return what the codec makes of a value, without a check that it is a text."""
        try:
            if self._dumps_in_place:
                return self._codec.dumps(value, annotation, Place(run, field))
            return self._codec.dumps(value, annotation)
        except _PASSED_ON:
            raise
        except BaseException as error:
            raise _as_exception(error) from error

    def loads(self, text: str, annotation: Any, run: str, field: str) -> Any:
        """Decode a text that the codec has made."""
        place = Place(run, field) if self._loads_in_place else None
        try:
            return self._codec.loads(text, annotation) if place is None else self._codec.loads(text, annotation, place)
        except RecursionError:
            # The caller may be called more deeply than the writer was. An empty stack has room for what any caller wrote.
            given = (text, annotation) if place is None else (text, annotation, place)
            return _with_empty_stack(self._codec.loads, *given)
        except _PASSED_ON:
            raise
        except BaseException as error:
            raise _as_exception(error) from error

    # -- where the codec hides -----------------------------------------------------------------------------------------

    def seal(self, text: str, run: str, field: str) -> str:
        """Encode one of flowcore's own texts with the codec. Returns a JSON string of the codec's text. Raises
        NotSerializable."""
        try:
            sealed = self.dumps(text, str, run, field)
        except Exception as error:
            raise NotSerializable(
                f"{field} of run {run} cannot be stored: dumps() of the store's codec= raised {type(error).__name__}: "
                f"{safe_str(error, 200)}."
            ) from error
        if not isinstance(sealed, str):
            raise NotSerializable(
                f"{field} of run {run} cannot be stored: dumps() of the store's codec= must return a str, not a "
                f"{type(sealed).__name__}."
            )
        return quoted(sealed)

    def open(self, sealed: str, run: str, field: str) -> str:
        """Decode a text that `seal` has made. `sealed` is the parsed JSON string, without quotes. Raises whatever the
        codec raises."""
        text = self.loads(sealed, str, run, field)
        if not isinstance(text, str):
            raise TypeError(f"it is a {type(text).__name__}")
        return text

    def lookup(self, key: str) -> str:
        """The text under which the run of a key is stored and looked up. Raises DefinitionError for a key that is not a
        string."""
        check_key(key)
        return self._mac("key", key) if self.hides else key

    def fingerprint(self, fingerprint: str | None) -> str | None:
        """The text that is stored for a fingerprint: its HMAC if the codec hides, and else the fingerprint itself."""
        return self._mac("fingerprint", fingerprint) if self.hides and fingerprint is not None else fingerprint

    def _mac(self, what: str, text: str) -> str:
        import hmac

        whole = what + "\0" + text  # no f-string, which formats a member of an Enum as something else
        return hmac.digest(self._secret, whole.encode("utf-8", "surrogatepass"), "sha256").hex()

    # -- the store's secret --------------------------------------------------------------------------------------------

    def secret_text(self) -> str:
        """The secret as the codec's text. Each process that writes encodes it anew, so that it is encrypted with the
        present key of the codec."""
        text = self.dumps(self._secret.hex(), str, "", "secret")
        if not isinstance(text, str):
            raise DefinitionError(f"dumps() of codec= must return a str, not a {type(text).__name__}.")
        return text

    def use(self, kept: str | None, *, used: bool, where: str) -> bool:
        """Use the secret that the store has kept, if there is one (`kept`). `used`: the store has runs already. `where`
        names the store in errors. Returns whether a secret was used.

        Raises StoreError if the store was set up with another codec: its keys would not be found, and their runs would
        be done again.
        """
        if not self.hides:
            if kept is not None:
                raise StoreError(
                    f"{where} was set up with a codec= that hides keys, so its runs would not be found. Pass that codec."
                )
            return False
        if kept is None:
            if used:
                raise StoreError(
                    f"{where} was set up without this codec=, so its runs would not be found. Use a new store, or give the "
                    "codec the attribute plain = True if it is to see values alone."
                )
            return False
        try:
            secret = bytes.fromhex(self.open(kept, "", "secret"))
        except Exception as error:
            raise StoreError(
                f"codec= cannot read the secret of {where} ({type(error).__name__}). Give it the key that it was set up with."
            ) from error
        self._secret = secret
        return True


def _with_empty_stack(call: Callable[..., Any], *given: object) -> Any:
    """Return or raise what the call does in a new thread."""
    outcome = Future[Any]()

    def run() -> None:
        try:
            outcome.set_result(call(*given))
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            outcome.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    return outcome.result()


def _takes(verb: Any, *numbers: int) -> bool:
    """Whether a method of a codec can be called with one of these numbers of arguments."""
    try:
        signature = inspect.signature(verb)
    except TypeError:
        return False
    except ValueError:  # a builtin whose parameters are unknown
        return 2 in numbers
    for number in numbers:
        try:
            signature.bind(*[None] * number)
        except TypeError:
            continue
        return True
    return False


def _as_exception(error: BaseException) -> RuntimeError:
    """Return an Exception in place of an error that is not one, such as the panic of a codec that is written in Rust.
    Otherwise it would end threads, and calls of the store would be repeated because of it."""
    return RuntimeError(f"{type(error).__name__}: {safe_str(error, 200)}")
