"""The program that times drafts on GPUs makes the plans that it names."""

from unittest.mock import patch

from drafts import drafts

from hsap_hf.cli.bench.mixes import mixes
from hsap_hf.planner import compile_plan, placement


def test_every_draft_is_a_plan_of_its_own_and_the_chosen_one_comes_first():
    lengths = mixes(65_536)["longtail_64k"]
    plans = {}
    for name, made in drafts(lengths, 2):
        with patch.object(placement, "_drafts", made):
            plans[name] = compile_plan(lengths, 2)
    assert next(iter(plans)) == "chosen"
    assert plans["chosen"] == compile_plan(lengths, 2)
    assert len({plan.fingerprint for plan in plans.values()}) == len(plans) > 5
    assert list(plans["4/16 off the head"].cut_documents) == [6], (
        "the one that was faster over NVLink cuts one document"
    )
