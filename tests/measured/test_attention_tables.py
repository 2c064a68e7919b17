"""The tables of measured attention show what the files hold, and every one of them."""

import json
import re

import pytest
from attention_tables import FILES, page, speeds, summary

TABLES = {"attention": summary, "other packs": speeds}
"""Of performance.md, by the name in their marks."""


@pytest.fixture
def docs(request):
    return request.config.rootpath / "docs"


def test_the_tables_are_current(request, docs):
    folder = docs / "measured"
    everything, shown = folder / "README.md", docs / "performance.md"
    if request.config.getoption("--write-docs", default=False):
        everything.write_text(page(folder))
        for name, table in TABLES.items():
            shown.write_text(between(name).sub(lambda _, table=table: table(folder), shown.read_text()))
    assert {path.stem for path in folder.glob("attention_*.json")} == set(FILES)
    old = "is old: run `pytest tests/measured --write-docs`"
    assert everything.read_text() == page(folder), f"docs/measured/README.md {old}"
    for name, table in TABLES.items():
        assert between(name).findall(shown.read_text()) == [table(folder)], f"docs/performance.md {old}"


def between(name):
    """What stands between the marks of a table."""
    return re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.S)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_was_the_plans(docs, name):
    rows = [row for row in json.loads((docs / "measured" / f"{name}.json").read_text()) if row["ratio"] is not None]
    counted = [row for row in rows if row.get("planned_bytes") is not None]
    assert [row["received_bytes"] for row in counted] == [row["planned_bytes"] for row in counted]
    ours = [row for row in rows if row["way"].startswith("hsap") and row["split"].endswith("x1")]
    assert ours
    assert all(any(row["received_bytes"]) != row["pack"].startswith("all_short") for row in ours)
