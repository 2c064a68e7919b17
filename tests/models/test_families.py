"""Every family of docs/models.md equals its stock model: loss, all gradients and three optimizer steps."""

import pytest
from families import FAMILIES, UNTUNED
from family_ranks import GROUPS

LOSS, GRADIENT = 1e-5, 1e-5
LATER_GRADIENT = 1e-4
"""After steps of AdamW, which divides small gradients by themselves and so enlarges rounding."""


@pytest.mark.parametrize("family", FAMILIES + UNTUNED, ids=lambda family: family.name)
def test_training_equals_the_stock_model(family, gloo, measured):
    found = gloo.run("family_ranks:compare_family", family.name)[0]
    assert [one["group"] for one in found] == [f"{c}x{u}" for c, u in GROUPS]
    for one in found:
        assert one["cuts"] >= 1 or one["group"].startswith("1x"), "no document was cut: the test would prove little"
        assert one["kernels"] == [family.kernel]
        assert one["loss"] <= LOSS
        assert one["grad"] <= GRADIENT
        assert one["later_grad"] <= LATER_GRADIENT
    measured[family.name] = found


def test_untuned_families_are_unknown_to_the_source(request):
    """A new family needs no code: not one line of the package knows these names."""
    text = "".join(path.read_text() for path in (request.config.rootpath / "hsap_hf").rglob("*.py")).lower()
    for family in UNTUNED:
        assert f'"{family.model_type}"' not in text


def test_a_kernel_that_cannot_is_refused_before_training(gloo):
    for text in gloo.run("family_ranks:refusal_of", "Gemma 2", "sdpa"):
        assert "kernel 'sdpa' cannot compute the attention of gemma2: it has no softcap" in text
        assert "these can: dense" in text
