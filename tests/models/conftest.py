"""Shared state of the model tests."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def measured() -> dict[str, list[dict[str, Any]]]:
    """What test_families measured in this run, by family."""
    return {}


@pytest.fixture(scope="session")
def trained() -> dict[str, dict[str, float]]:
    """What test_family_trainer measured in this run, by family."""
    return {}
