"""What several test folders share."""

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: two cores, up to four ranks

import pytest
from gloo_pool import GlooPool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write docs/*.md from what this run measures")


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """Four gloo ranks, started by the first test that calls them."""
    pool = GlooPool(4)
    yield pool
    pool.close()
