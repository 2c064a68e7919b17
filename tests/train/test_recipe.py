"""Recipes: the shipped ones load, wrong ones say everything that is wrong with them at once."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer

from hsap_hf import HsapDataCollator, HsapPlugin
from hsap_hf.data import PackedDataset
from hsap_hf.errors import ConfigError
from hsap_hf.train.recipe import build_training_arguments, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = {
    "model": {"config": {"model_type": "llama", "hidden_size": 32}},
    "data": {"source": "stdlib"},
    "packing": {"pack_tokens": 256},
    "training": {"use_cpu": True},
}


@pytest.fixture
def recipe(tmp_path):
    def load(*overrides, **sections):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**GOOD, **sections}))
        return load_recipe(path, overrides)

    return load


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    assert load_recipe(path).packing.pack_tokens > 0


def test_the_quick_start_is_small_and_needs_no_network():
    quick = load_recipe(RECIPES / "quickstart_cpu.yaml")
    assert quick.data.source == "stdlib"
    assert quick.model.config["num_key_value_heads"] < quick.model.config["num_attention_heads"]
    arguments = build_training_arguments(quick)
    assert arguments.device.type == "cpu"
    assert arguments.save_strategy == "no"
    assert arguments.report_to == []


@pytest.mark.parametrize("name", ["cpu_2.yaml", "fsdp2_8gpu.yaml"])
def test_accelerate_knows_every_key_of_its_files(name):
    config = load_config_from_file(str(RECIPES / "accelerate" / name))
    arguments = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(arguments)
    assert config.num_processes == (2 if name == "cpu_2.yaml" else 8)


def test_the_file_for_our_launcher_is_the_cpu_file_and_a_section():
    ours = yaml.safe_load((RECIPES / "accelerate" / "hsap_cpu_2.yaml").read_text())
    assert HsapPlugin.from_mapping(ours.pop("hsap")).context_size == 2
    assert ours == yaml.safe_load((RECIPES / "accelerate" / "cpu_2.yaml").read_text())


def test_silent_recipes_get_the_defaults_that_packs_need(recipe):
    arguments = build_training_arguments(recipe())
    assert arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 1
    assert arguments.train_sampling_strategy == "sequential"
    assert arguments.ddp_find_unused_parameters is False
    assert recipe().hsap == HsapPlugin()


def test_overrides_reach_any_depth(recipe):
    changed = recipe("training.max_steps=20", "model.config.hidden_size=128", "hsap.ulysses_size=2", "data.seed= 7")
    assert changed.training == {"use_cpu": True, "max_steps": 20}
    assert changed.model.config == {"model_type": "llama", "hidden_size": 128}
    assert (changed.hsap.ulysses_size, changed.data.seed) == (2, 7)
    assert recipe("training.learning_rate=1e-5").training["learning_rate"] == 1e-5


def test_fsdp_is_a_switch_as_transformers_documents_it(recipe):
    assert recipe("training.fsdp=true", "training.use_cpu=false").training["fsdp"] is True
    assert recipe("training.fsdp=full_shard", "training.use_cpu=false").training["fsdp"] == "full_shard"


def test_trainer_reads_packs_through_our_collator(recipe):
    arguments = build_training_arguments(recipe())
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    packed = PackedDataset([[3, 4, 5], [6, 7], [8] * 9], pack_tokens=10)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_config(config),
        args=arguments,
        train_dataset=packed,
        data_collator=HsapDataCollator(),
    )
    batches = list(trainer.get_train_dataloader())
    assert [batch["input_ids"][0].tolist() for batch in batches] == [item["input_ids"] for item in packed]
    assert all(set(batch) == {"input_ids", "labels", "position_ids", "cu_seqlens"} for batch in batches)


BAD = [
    ({"loging": {}}, [], "unknown key 'loging'; did you mean 'logging'?"),
    ({"model": 5}, [], "model: got 5, needs `key: value` lines."),
    ({"model": {}}, [], "model: needs one of name_or_path (pretrained) and config (random weights), got neither."),
    ({}, ["model.name_or_path=x"], "and config (random weights), got both."),
    (
        {"model": {"name_or_path": "x", "torch_dtype": "a"}},
        [],
        "model: unknown key 'torch_dtype'; did you mean 'dtype'?",
    ),
    ({}, ["model.dtype=fp8"], "model.dtype: got 'fp8', needs 'float32' or 'bfloat16' or 'float16' or 'auto'."),
    ({}, ["model.config.hidden_sizes=3"], "model.config: unknown key 'hidden_sizes'; did you mean 'hidden_size'?"),
    ({}, ["model.config.num_attention_heads=abc"], "model.config: "),
    ({}, ["training.resume_from_checkpoint=nope"], "training.resume_from_checkpoint: nope is no folder. Name a run's"),
    ({}, ["model.config.model_type=lama"], "model.config.model_type: unknown key 'lama'; did you mean 'llama'?"),
    ({"model": {"config": {"hidden_size": 3}}}, [], "model.config.model_type: missing. Write for example"),
    ({}, ["model.lora.lora_alfa=8"], "model.lora: unknown key 'lora_alfa'; did you mean 'lora_alpha'?"),
    ({}, ["model.trust_remote_code=true"], "model.trust_remote_code: a recipe never runs code from elsewhere."),
    ({}, ["model.config.trust_remote_code=1"], "model.config.trust_remote_code: a recipe never runs code"),
    ({"data": {}}, [], "data.source: missing, it has no default. Write for example `source: stdlib`."),
    ({}, ["data.max_tokens=0"], "data.max_tokens: got 0, needs at least 1."),
    ({}, ["data.vocab_size=many"], "data.vocab_size: got 'many', needs a whole number."),
    ({}, ["model.config.vocab_size=300"], "model.config.vocab_size is 300, but data.vocab_size allows the tokenizer"),
    ({"packing": {}}, [], "packing.pack_tokens: missing, it has no default. Write for example `pack_tokens: 8192`."),
    ({}, ["packing.pack_tokens=0"], "packing.pack_tokens: got 0, needs at least 1."),
    ({}, ["hsap.contextsize=2"], "hsap: unknown key 'contextsize'; did you mean 'context_size'?"),
    (
        {},
        ["hsap.context_size=2", "hsap.max_tokens_per_rank=100"],
        "packing.pack_tokens is 256, but hsap.max_tokens_per_rank allows 100 on each of 2 ranks, 200 in all",
    ),
    ({}, ["training.max_step=5"], "training: unknown key 'max_step'; did you mean 'max_steps'?"),
    ({}, ["training.fsdp=3"], "training.fsdp: got 3, needs a text or null."),
    ({}, ["training.max_steps=1.5"], "training.max_steps: got 1.5, needs a whole number."),
    (
        {},
        ["training.save_strategy=no"],
        'training.save_strategy: got False, needs SaveStrategy or a text. Quote it: "no".',
    ),
    (
        {},
        ["training.lr_scheduler_type=cosin"],
        "training.lr_scheduler_type: unknown value 'cosin'; did you mean 'cosine'?",
    ),
    ({}, ["training.warmup_ratio=0.1"], "transformers 5 has no 'warmup_ratio'. warmup_steps takes a fraction too"),
    ({}, ["training.evaluation_strategy=steps"], "transformers 5 has no 'evaluation_strategy'. Use eval_strategy."),
    ({}, ["training.fsdp=true", "training.use_cpu=true"], "training.fsdp: accelerate shards on GPUs only"),
    (
        {},
        ["training.activation_checkpointing_kwargs={reentrant: true}"],
        "unknown key 'reentrant'; did you mean 'use_ree",
    ),
    (
        {},
        ["training.activation_checkpointing_kwargs={offload: true}"],
        "offload moves a GPU's memory to the host. Leave",
    ),
    ({}, ["training.gradient_accumulation_steps=0"], "training.gradient_accumulation_steps: got 0, needs at least 1"),
    ({}, ["training.group_by_length=true"], "transformers 5 has no 'group_by_length'. Leave it out"),
    ({}, ["training.per_device_train_batch_size=2"], "training.per_device_train_batch_size: got 2, HSAP needs 1: one"),
    ({}, ["training.train_sampling_strategy=random"], "got 'random', HSAP needs 'sequential': the parts of a pack"),
    ({}, ["training.label_smoothing_factor=0.1"], "training.label_smoothing_factor: got 0.1, HSAP needs 0: its loss"),
    ({}, ["training.average_tokens_across_devices=false"], "got False, HSAP needs True: the loss is a sum over tokens"),
    ({}, ["training.eval_strategy=steps"], "training.eval_strategy: got 'steps', HSAP needs 'no': a recipe brings no"),
    ({}, ["training.neftune_noise_alpha=5"], "training.neftune_noise_alpha: got 5, HSAP needs None or 0"),
    ({}, ["training.use_cache=true"], "training.use_cache: got True"),
    ({}, ["training.parallelism_config={cp_size: 2}"], "HSAP builds its own groups. Set hsap.context_size"),
    (
        {},
        ["training.accelerator_config={even_batches: false}"],
        "accelerator_config.even_batches: got False: the ranks",
    ),
    (
        {},
        ["max_steps=5"],
        "override 'max_steps=5': needs the form section.key=value, for example training.max_steps=20.",
    ),
    ({}, ["training.max_steps"], "override 'training.max_steps': needs the form section.key=value"),
    ({}, ["training.use_cpu.a=1"], "override 'training.use_cpu.a=1': training.use_cpu is True and holds no keys."),
    ({}, ["training.run_name=[a"], "override 'training.run_name=[a': the value is not YAML. Quote it, for example"),
]


@pytest.mark.parametrize(
    ("sections", "overrides", "text"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_recipes_are_refused_in_words(recipe, sections, overrides, text):
    with pytest.raises(ConfigError) as error:
        recipe(*overrides, **sections)
    assert text in str(error.value)
    assert str(error.value).count("\n  - ") == 1  # the problem is named once, and nothing else is invented


def test_offload_is_refused_by_transformers_that_do_not_know_it(recipe, monkeypatch):
    name = "activation_checkpointing_enable"
    monkeypatch.setattr(PreTrainedModel, name, lambda self, gradient_checkpointing_kwargs=None: None, raising=False)
    with pytest.raises(ConfigError, match=r"offload needs transformers 5\.17: pip install"):
        recipe("training.activation_checkpointing_kwargs={offload: true}", "training.use_cpu=false")


def test_all_problems_are_listed_together(recipe):
    with pytest.raises(ConfigError) as error:
        recipe("oops", model={}, data={}, packing={"seed": "x"}, hsap={"kernel": "x"}, training={"lr": 1})
    named = str(error.value)
    for text in ("'oops'", "model:", "data.source", "packing.seed", "packing.pack_tokens", "hsap.kernel", "'lr'"):
        assert text in named


def test_what_only_transformers_knows_is_reported_as_configuration(recipe):
    with pytest.raises(ConfigError, match=r"^training: .*load_best_model_at_end"):
        build_training_arguments(recipe("training.load_best_model_at_end=true", "training.save_steps=4"))
