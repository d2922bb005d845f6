"""The suite that every store passes: MemoryStore, SQLiteStore, RedisStore, AsyncRedisStore, and yours.

    class TestMyStore(StoreConformance):
        def make_store(self):
            return MyStore(...)

pytest runs it. The store may be sync or async. What it may find when it is made, from tests before, does not matter:
each test has keys and workflows of its own. Three more methods and a number say more about a store, where there is
more to say:

| defined by you | what it is for | else |
|---|---|---|
| `open_again(self, store)` | another object on the same data, as a second process has | the same object is used |
| `make_forgetful_store(self, retention)` | forgets ended runs after so many seconds | those tests are skipped |
| `advance(self, seconds)` | moves the clock on, where the store's is not the real one | it is waited for |
| `examples` | how many made-up histories are gone through | 30 |

A failure names the rule that is broken; all rules stand in `rules.py`. It needs pytest and hypothesis, which nothing else in
flowcore does.
"""

from __future__ import annotations

from . import claims, contents, late, machine, operators, races, waits, writes

__all__ = ["StoreConformance"]


# pytest runs the tests of the last class first: the plainest ones.
class StoreConformance(
    machine.MadeUpHistories,
    races.Races,
    contents.ContentRules,
    late.LateCopies,
    waits.WaitRules,
    operators.OperatorRules,
    writes.WriteRules,
    claims.ClaimRules,
):
    """The tests of a store, to be inherited from by a class whose name begins with Test.

    Define `make_store(self)`. See the docstring of `flowcore.testing.conformance` for what else may be defined.
    """
