"""Stores with a codec that encrypts keep the contract of stores: keys are found by their HMAC.

The suite reads fingerprints back, which such a store cannot give: here they are kept as they are, and test_at_rest.py tests
their HMACs.
"""

from typing import Any

import pytest

from tests.security.codecs import Encrypted
from tests.stores.redis_servers import redis_url
from tests.stores.test_redis_conformance import Conformance
from tests.stores.test_sqlite_conformance import TestSQLiteStore as _OfSQLite

__all__ = ["redis_url"]  # a fixture


def _with_fingerprints(store: Any) -> Any:
    sealing = (store._verbs if hasattr(store, "_verbs") else store)._encoding.sealing
    assert sealing.hides
    sealing.fingerprint = lambda fingerprint: fingerprint
    return store


@pytest.mark.share
class TestSealedSQLiteStore(_OfSQLite):
    examples = 5
    codec = Encrypted()

    def make_store(self, **options: Any) -> Any:
        return _with_fingerprints(super().make_store(codec=self.codec, **options))


@pytest.mark.share
class TestSealedRedisStore(Conformance):
    examples = 5
    codec = Encrypted()

    def make_store(self, **options: Any) -> Any:
        return _with_fingerprints(super().make_store(codec=self.codec, **options))


@pytest.mark.full  # Both kinds of Redis store are made of the same verbs.
class TestSealedAsyncRedisStore(TestSealedRedisStore):
    asynchronous = True
