"""Commands that start no ranks run in this process."""

import pytest


@pytest.fixture
def hsap(monkeypatch, capsys):
    """(exit code, stdout, stderr) of `hsap WORDS`."""
    from hsap_hf.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hsap", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run
