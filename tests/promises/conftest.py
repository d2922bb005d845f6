"""The drivers, ledgers and gates of tests/core."""

from tests.core.conftest import drive, gate, ledger, live, pytest_generate_tests

__all__ = ["drive", "gate", "ledger", "live", "pytest_generate_tests"]
