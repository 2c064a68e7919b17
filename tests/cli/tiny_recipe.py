"""A recipe that trains in a second: a tiny Llama on random documents, long and short, tokenized beforehand."""

import json
import random
from pathlib import Path

import yaml


def write_recipe(folder: Path, **training: object) -> Path:
    """The recipe's path."""
    draw = random.Random(0)
    rows = [[draw.randrange(3, 96) for _ in range(draw.choice([1, 4, 9, 30, 150]))] for _ in range(60)]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    model = {"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64}
    model |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    recipe = {
        "model": {"config": model, "dtype": "float32"},
        "data": {"source": str(folder / "documents.jsonl"), "vocab_size": 96},
        "packing": {"pack_tokens": 256},
        "training": {
            "output_dir": str(folder / "out"),
            "use_cpu": True,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 4,
            "disable_tqdm": True,
            **training,
        },
        "logging": {"proof": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
