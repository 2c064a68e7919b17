"""The proof tells right from wrong for adapters too, and says when there is nothing to tell."""

import pytest


def test_frozen_embeddings_are_proved(gloo):
    pytest.importorskip("peft")
    for passed, leak, own_signal, difference in gloo.run("proof_runs:proof_with_lora"):
        assert passed
        assert leak == 0.0
        assert own_signal > 0.0
        assert 0.0 < difference < 1e-5


def test_a_pack_without_supervised_tokens_is_no_proof(gloo):
    for said in gloo.run("proof_runs:proof_of_nothing"):
        assert said.startswith("the proof's pack has no token whose label counts")
