"""docs/models.md lists what is tested and nothing else."""

import re

from families import FAMILIES, UNTUNED
from page import page

FIGURE = re.compile(r"(?<=\| )(?:\d\.\de[-+]\d\d|-)(?= \|)")


def test_the_page_is_current(request, measured, trained):
    """Families, features, kernels and reasons; figures may differ between machines."""
    path = request.config.rootpath / "docs" / "models.md"
    if request.config.getoption("--write-docs", default=False):
        names = {family.name for family in FAMILIES + UNTUNED}
        assert set(measured) == set(trained) == names, "run the whole folder to write the page"
        path.write_text(page(measured, trained))
    committed = FIGURE.sub("-", path.read_text())
    assert committed == FIGURE.sub("-", page({}, {})), "docs/models.md is old: run `pytest tests/models --write-docs`"
    assert len(FIGURE.findall(path.read_text())) == 5 * len(FAMILIES + UNTUNED)
