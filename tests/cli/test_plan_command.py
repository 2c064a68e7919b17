"""`hsap plan` prints the plan it was asked for, in a format other programs can rely on."""

import json

import pytest
from launched import PYTHON, launch
from tiny_recipe import write_recipe

LENGTHS = [900, 40, 8, 8, 300, 1]
KEYS = {
    "context_size": int,
    "ulysses_size": int,
    "documents": list,
    "slots": list,
    "work_imbalance": float,
    "token_imbalance": float,
    "cut_documents": int,
    "fetched_tokens_mean": float,
    "fetched_tokens_max": int,
    "plan_milliseconds": float,
}


def whole_numbers(rows, width):
    return all(len(row) == width and all(type(number) is int for number in row) for row in rows)


def test_the_json_object_has_exactly_the_agreed_keys_and_types(hsap):
    words = ["--lengths", "900,40,8,8,300,1", "--context-size", 3, "--ulysses-size", 2, "--json"]
    code, out, err = hsap("plan", *words)
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert list(shown) == list(KEYS)
    assert {name: type(value) for name, value in shown.items()} == KEYS
    assert shown["documents"] == LENGTHS
    assert (shown["context_size"], shown["ulysses_size"]) == (3, 2)
    for slot in shown["slots"]:
        assert list(slot) == ["pieces", "fetches", "tokens", "work"]
        assert type(slot["tokens"]) is type(slot["work"]) is int
        assert whole_numbers(slot["pieces"], 3)
        assert whole_numbers(slot["fetches"], 4)


def test_the_numbers_are_those_of_the_plan_itself(hsap):
    shown = json.loads(hsap("plan", "--lengths", "[900, 40, 8, 8, 300, 1]", "-c", 3, "--json")[1])
    assert {tuple(range(start, stop)) for slot in shown["slots"] for _, start, stop in slot["pieces"]}
    rows = sorted(
        (d, row) for slot in shown["slots"] for d, start, stop in slot["pieces"] for row in range(start, stop)
    )
    assert rows == [(d, row) for d, length in enumerate(LENGTHS) for row in range(length)]
    work = [sum(row + 1 for _, a, b in slot["pieces"] for row in range(a, b)) for slot in shown["slots"]]
    assert [slot["work"] for slot in shown["slots"]] == work
    assert shown["work_imbalance"] == pytest.approx(max(work) * 3 / sum(work))
    fetched = [sum(stop - start for *_, start, stop in slot["fetches"]) for slot in shown["slots"]]
    assert shown["fetched_tokens_max"] == max(fetched) > 0
    assert shown["fetched_tokens_mean"] == pytest.approx(sum(fetched) / 3)
    assert shown["cut_documents"] >= 1
    assert shown["plan_milliseconds"] > 0


def test_lengths_come_from_a_list_a_file_or_a_named_pack(hsap, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(LENGTHS))
    (tmp_path / "packs.json").write_text(json.dumps({"packs": {"other": [5], "mine": LENGTHS}}))
    sources = [
        ["--lengths", "900,40,8,8,300,1"],
        ["--lengths", tmp_path / "list.json"],
        ["--lengths", tmp_path / "packs.json", "--pack", "mine"],
    ]
    shown = [json.loads(hsap("plan", *source, "-c", 2, "--json")[1]) for source in sources]
    assert [plan["documents"] for plan in shown] == [LENGTHS] * 3
    assert [plan["slots"] for plan in shown] == [shown[0]["slots"]] * 3


def test_a_recipes_pack_is_planned(hsap, tmp_path):
    recipe = write_recipe(tmp_path)
    first, third = (json.loads(hsap("plan", recipe, *pack, "-c", 2, "--json")[1]) for pack in ([], ["--pack", 2]))
    assert first["documents"] != third["documents"]
    assert 0 < sum(first["documents"]) <= 256


def test_a_recipes_sizes_are_planned_where_no_others_are_given(hsap, tmp_path):
    recipe = write_recipe(tmp_path)
    given = [[], ["--context-size", 2]]
    sizes = [json.loads(hsap("plan", recipe, *words, "--json")[1]) for words in given]
    recipe.write_text(recipe.read_text() + "hsap:\n  context_size: 3\n  ulysses_size: 2\n")
    sizes += [json.loads(hsap("plan", recipe, *words, "--json")[1]) for words in given]
    assert [(plan["context_size"], plan["ulysses_size"]) for plan in sizes] == [(4, 1), (2, 1), (3, 2), (2, 2)]


def test_the_table_shows_every_slot_of_the_plan_and_what_a_ring_would_move(hsap, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = json.loads(hsap("plan", "--lengths", "4000,10", "-c", 4, "--json")[1])
    code, out, _ = hsap("plan", "--lengths", "4000,10", "-c", 4)
    assert code == 0
    assert "2 documents, 4,010 tokens" in out
    cells = [[cell.strip() for cell in line.split("│")[1:5]] for line in out.splitlines() if line.startswith("│")]
    wanted = [(number, len(slot["pieces"]), slot["tokens"], slot["work"]) for number, slot in enumerate(shown["slots"])]
    assert cells == [[f"{number:,}" for number in row] for row in wanted]
    assert "ring" in out


def test_a_plan_can_be_drawn(hsap, tmp_path):
    pytest.importorskip("matplotlib")
    assert hsap("plan", "--lengths", "400,10", "-c", 2, "--plot", tmp_path / "pack.svg")[0] == 0
    assert "<svg" in (tmp_path / "pack.svg").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "hsap plan needs a recipe or --lengths, and only one of them."),
        (["quick.yaml", "--lengths", "1,2"], "hsap plan needs a recipe or --lengths, and only one of them."),
        (["--lengths", "nine"], "'nine' is neither a file that is there nor a list like 900,40,8"),
        (["--lengths", "5,0"], "0"),
        (["--lengths", "5,-3"], "-3"),
        (["--lengths", "5,2.5"], "2.5"),
        (["--lengths", "packs.json", "--pack", "none"], "--pack 'none' is not in"),
        (["--lengths", "packs.json"], "packs.json holds several packs. Choose one by --pack: a."),
        (["--lengths", "no_packs.json"], "no_packs.json has no packs. Needed is a list of lengths, or"),
        (["--lengths", "listed.json"], "listed.json has no packs. Needed is a list of lengths, or"),
        (["--lengths", "broken.json"], "'broken.json' is no JSON"),
        (["--lengths", "5,3", "--pack", "a"], "'5,3' is one list of lengths and has no packs by name"),
        (["--lengths", "[]"], "holds no document"),
        (["--lengths", "5,3", "--plot", "nowhere/pack.svg"], "there is no folder nowhere|pip install"),
        (["missing.yaml"], "missing.yaml: no such file."),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(hsap, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packs.json").write_text('{"packs": {"a": [1]}}')
    (tmp_path / "no_packs.json").write_text('{"a": [1]}')
    (tmp_path / "listed.json").write_text('{"packs": [1, 2]}')
    (tmp_path / "broken.json").write_text("[1, 2")
    code, out, err = hsap("plan", *words)
    assert code == 2
    assert any(part in err for part in text.split("|"))
    assert out == ""
    assert "Traceback" not in err


def test_unknown_options_are_refused_by_name(hsap):
    code, _, err = hsap("plan", "--length", "5")
    assert code == 2
    assert "--length" in err


def test_python_m_is_the_same_command():
    ended = launch(PYTHON, "-m", "hsap_hf", "plan", "--lengths", "9,3", "-c", 2, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["documents"] == [9, 3]
    wrong = launch(PYTHON, "-m", "hsap_hf", "plan", "--lengths", "x")
    assert wrong.code == 2
    assert wrong.err.startswith("ConfigError: ")
