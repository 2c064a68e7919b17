"""docs/settings.md lists every setting with its default."""

from settings_page import page


def test_the_page_is_current(request):
    path = request.config.rootpath / "docs" / "settings.md"
    if request.config.getoption("--write-docs", default=False):
        path.write_text(page())
    assert path.read_text() == page(), "docs/settings.md is old: run `pytest tests/train --write-docs`"
