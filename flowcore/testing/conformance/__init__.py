"""The suite that every store passes: MemoryStore, SQLiteStore, RedisStore, AsyncRedisStore, and yours.

    class TestMyStore(StoreConformance):
        def make_store(self):
            return MyStore(...)

pytest runs it. The store may be sync or async. It may hold records of earlier tests, because each test uses its own
keys and workflows. Three more methods and a number are optional:

| defined by you | what it is for | without it |
|---|---|---|
| `open_again(self, store)` | another object on the same data, as a second process has | the same object is used |
| `make_forgetful_store(self, retention)` | a store that forgets ended runs after so many seconds | its tests are skipped |
| `advance(self, seconds)` | advances the clock of a store that does not use the real one | the tests sleep |
| `examples` | how many random histories are tried | 30 |

A failure names the rule that is broken; all rules are in `rules.py`. The suite needs pytest and hypothesis; nothing
else in flowcore does.
"""

from __future__ import annotations

from . import claims, contents, late, machine, operators, races, unrenewed, waits, writes

__all__ = ["StoreConformance"]


# pytest runs the tests of the last base class first, so the simplest tests come first.
class StoreConformance(
    machine.MadeUpHistories,
    races.Races,
    contents.ContentRules,
    late.LateCopies,
    unrenewed.UnrenewedRules,
    waits.WaitRules,
    operators.OperatorRules,
    writes.WriteRules,
    claims.ClaimRules,
):
    """The tests of a store. Inherit from it in a class whose name begins with Test.

    Define `make_store(self)`. See the docstring of `flowcore.testing.conformance` for what else may be defined.
    """
