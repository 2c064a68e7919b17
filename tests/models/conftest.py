"""Options and shared state of the model tests."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--weights", action="store_true", help="also run the tests that need pretrained weights")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "weights: needs pretrained weights; run with `pytest tests/models --weights`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--weights", default=False):
        skip = pytest.mark.skip(reason="opt in: pytest tests/models --weights")
        for item in items:
            if item.get_closest_marker("weights"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def measured() -> dict[str, list[dict[str, Any]]]:
    """What test_families measured in this run, by family."""
    return {}


@pytest.fixture(scope="session")
def trained() -> dict[str, dict[str, float]]:
    """What test_family_trainer measured in this run, by family."""
    return {}
