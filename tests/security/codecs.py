"""Codecs that encrypt, for tests."""

from typing import Any

from cryptography.fernet import Fernet, MultiFernet

from flowcore.stores.codec import JsonCodec

_JSON = JsonCodec()


class Encrypted:
    """Values encrypted with Fernet, each bound to its place. The first key encrypts; the others are still read."""

    def __init__(self, *keys: bytes) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys or (Fernet.generate_key(),)])

    def dumps(self, value: Any, annotation: Any, place: tuple[str, str]) -> str:
        text = _JSON.dumps([*place, _JSON.dumps(value)])
        return self._fernet.encrypt(text.encode()).decode()

    def loads(self, text: str, annotation: Any, place: tuple[str, str]) -> Any:
        run, field, value = _JSON.loads(self._fernet.decrypt(text.encode()).decode())
        if (run, field) != place:
            raise ValueError("this text belongs to another place")
        return _JSON.loads(value)


class Mirrored:
    """A codec of two arguments: nearly encrypts."""

    def dumps(self, value: Any, annotation: Any) -> str:
        return _JSON.dumps(value)[::-1].swapcase()

    def loads(self, text: str, annotation: Any) -> Any:
        return _JSON.loads(text.swapcase()[::-1])
