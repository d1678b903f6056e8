"""Fixtures of the tests of data, for the benchmarks that read videos."""

from tests.data.conftest import make

__all__ = ["make"]
