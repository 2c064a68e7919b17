"""The Python of docs/scripts.md runs as it stands, and a recipe on two machines as it says."""

import json
import re

from launched import PYTHON, REPOSITORY, free_port, launch, launch_together
from small import small_llama
from tiny_recipe import write_recipe

from hsap_hf.data.corpus import train_tokenizer

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
BEFORE = """
import datasets
from trl import SFTConfig

config = SFTConfig("out", packing=True, max_length=64, max_steps=2, use_cpu=True, bf16=False, report_to=[])
path = "model"
documents = [[3 + i % 90 for i in range(length)] for length in (700, 3, 40, 9, 1, 220, 64, 5)]
dataset = datasets.Dataset.from_dict({"text": ["def f(x):", "return x * x", "x"] * 8})
reports = []
"""
AFTER = "\nreports.append(handle.report())\nhandle.disable()\n"
END = "\nprint('BATCHES', [report['batches'] for report in reports], 'ROWS', reports[0]['received_rows'])\n"


def test_the_code_runs_on_two_ranks_and_shares_every_batch(tmp_path):
    small_llama(vocab_size=300).save_pretrained(tmp_path / "model")
    train_tokenizer(["def f(x):\n    return x"], 300).save_pretrained(tmp_path / "model")
    blocks = BLOCK.findall((REPOSITORY / "docs" / "scripts.md").read_text())
    assert len(blocks) == 3
    (tmp_path / "script.py").write_text(BEFORE + AFTER.join([*blocks, END]))
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    ended = launch(*torchrun, "script.py", cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert ended.code == 0, ended.err[-3000:]
    told = re.findall(r"BATCHES \[(\d+), (\d+), (\d+)\] ROWS ([1-9])", ended.out)
    assert len(told) == 2
    assert min(int(number) for rank in told for number in rank) > 0


def test_a_recipe_runs_on_two_machines(tmp_path):
    recipe = write_recipe(tmp_path)
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    machines = launch_together(*([*torchrun, "--node-rank", n, "-m", "hsap_hf.train", recipe] for n in range(2)))
    for machine in machines:
        assert machine.code == 0, machine.err[-3000:]
    assert "2 ranks = 1 replica" in machines[0].out
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 4
