"""The option that runs the slow proof that the tests notice bugs."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeded-bugs", action="store_true", help="also check that the tests notice seeded bugs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seeded_bugs: minutes; run with `pytest tests/faults --seeded-bugs`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--seeded-bugs", default=False):
        skip = pytest.mark.skip(reason="opt in: pytest tests/faults --seeded-bugs")
        for item in items:
            if item.get_closest_marker("seeded_bugs"):
                item.add_marker(skip)
