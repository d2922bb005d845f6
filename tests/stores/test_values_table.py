"""The guide's table of values is what the stores do."""

from tests.stores.redis_servers import redis_url
from tests.stores.values_table import PAGE, filled, table

__all__ = ["redis_url"]  # a fixture


def test_the_table_of_values_is_what_the_stores_do(redis_url: str) -> None:
    found = table(redis_url)
    assert "differs" not in found
    assert "kept" not in found
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, found) == page
