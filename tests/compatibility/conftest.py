"""What the tests of this folder show, kept for the page that lists them."""

from __future__ import annotations

from collections.abc import Callable

import gpu_figures
import pytest

ROWS = ("shows", gpu_figures.MARKER, "refuses")
"""Markers of tests that have a row of the page."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(feature, compared_with): a row of docs/compatibility.md")
    config.addinivalue_line("markers", f"{gpu_figures.MARKER}(feature, compared_with): a row of its table of GPUs")
    config.addinivalue_line("markers", "refuses(what): a row of its table of refusals")


@pytest.fixture(scope="session")
def shown() -> dict[str, list[float | str]]:
    """What was measured in this run, by feature."""
    return {}


@pytest.fixture
def show(request: pytest.FixtureRequest, shown: dict[str, list[float | str]]) -> Callable[[float | str], None]:
    """Keep the largest difference that this test found, or the words of a refusal, for its row of the page."""
    marker = next(filter(None, map(request.node.get_closest_marker, ROWS)))
    feature = marker.args[0]

    def keep(found: float | str) -> None:
        shown.setdefault(feature, []).append(found if isinstance(found, str) else float(found))

    return keep
