"""What several test folders share."""

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: two cores, up to four ranks

import pytest
from gloo_pool import GlooPool

OPT_IN = {
    "weights": "need pretrained weights; run with `pytest tests/models --weights`",
    "seeded_bugs": "take minutes; run with `pytest tests/faults --seeded-bugs`",
}
"""Markers of tests that run only where an option of their name asks for them, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write docs/*.md from what this run measures")
    for marker, why in OPT_IN.items():
        parser.addoption(_option(marker), action="store_true", help=f"also run the tests that {why}")


def pytest_configure(config: pytest.Config) -> None:
    for marker, why in OPT_IN.items():
        config.addinivalue_line("markers", f"{marker}: {why}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, why in OPT_IN.items():
        for item in items:
            if item.get_closest_marker(marker) and not config.getoption(_option(marker)):
                item.add_marker(pytest.mark.skip(reason=f"opt in: they {why}"))


def _option(marker: str) -> str:
    return "--" + marker.replace("_", "-")


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """Four gloo ranks, started by the first test that calls them."""
    pool = GlooPool(4)
    yield pool
    pool.close()
