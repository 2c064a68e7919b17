"""Load the last checkpoints of FOLDER as anyone would, without hsap_hf, and keep their weights in RUN loaded.npz."""

import sys
from pathlib import Path

import numpy as np
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for run, kind in (("full shared", AutoModelForCausalLM), ("lora shared", AutoPeftModelForCausalLM)):
        model = kind.from_pretrained(folder / run / "checkpoint-12")
        np.savez(folder / f"{run} loaded.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
    assert not any(name.startswith("hsap") for name in sys.modules)
