"""The tests notice the bugs they are there for. Opt in: `pytest tests/faults --seeded-bugs`, three minutes."""

import shutil
import sys

import pytest
from launched import REPOSITORY, launch
from seeded_bugs import BUGS


@pytest.mark.parametrize("name", BUGS)
def test_every_edit_still_fits(name):
    for file, old, new in BUGS[name].edits:
        assert (REPOSITORY / "hsap_hf" / file).read_text().count(old) == 1, f"{file}: {old!r}"
        assert old != new


@pytest.mark.seeded_bugs
@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_caught(name, tmp_path):
    shutil.copytree(REPOSITORY / "hsap_hf", tmp_path / "hsap_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in BUGS[name].edits:
        path = tmp_path / "hsap_hf" / file
        path.write_text(path.read_text().replace(old, new))
    files, options = BUGS[name].tests[:1], BUGS[name].tests[1:]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(REPOSITORY / one for one in files)]
    ended = launch(*words, *options, cwd=tmp_path, deadline=300)  # where the edited package is found first
    assert ended.code == 1, ended.out[-3000:] + ended.err[-2000:]  # 1: tests failed; others: none ran
    assert " failed" in ended.out
