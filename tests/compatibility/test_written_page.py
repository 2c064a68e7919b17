"""docs/compatibility.md lists what is tested and nothing else."""

import re

import pytest
from compatibility_page import page

LAST_COLUMN = re.compile(r"(?<= )[^|]+(?= \|$)", re.M)


def test_the_page_is_current(request, shown):
    """Features and what they are compared with; figures may differ between machines, words between versions."""
    mine = [item for item in request.session.items if item.path.parent == request.path.parent]
    if len({item.path for item in mine}) < len(list(request.path.parent.glob("test_*.py"))) or _chosen(request.config):
        pytest.skip("a part of the folder was chosen")
    path = request.config.rootpath / "docs" / "compatibility.md"
    if request.config.getoption("--write-docs", default=False):
        text = page(mine, shown)
        assert " - |" not in text, "run the whole folder to write the page"
        path.write_text(text)
    written, current = (LAST_COLUMN.sub("-", text) for text in (path.read_text(), page(mine, {})))
    assert written == current, "docs/compatibility.md is old: run `pytest tests/compatibility --write-docs`"


def _chosen(config):
    return config.option.keyword or any("::" in str(argument) for argument in config.args)
