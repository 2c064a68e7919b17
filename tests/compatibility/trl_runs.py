"""Runs on one rank of the gloo pool: TRL's trainers, with HSAP or as plain data parallelism."""

import contextlib
import logging
import random
import tempfile

import datasets
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig
from small import VOCABULARY, Documents, small_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from hsap_hf import HsapPlugin, enable_hsap, prepare_trainer
from hsap_hf.errors import HsapError

datasets.disable_progress_bars()

DEFAULTS = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 6,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "learning_rate": 5e-5,
    "max_length": 128,
    "ddp_find_unused_parameters": False,
    "disable_tqdm": True,
    "seed": 1,
}
EVALUATED = 27
"""Rows to evaluate on: with four ranks of two, the last batch is uneven."""
SPECIAL = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
CHAT = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    " {% generation %}{{ message.content }}<eos>{% endgeneration %}"
    "{% else %} {{ message.content }}{% endif %}{% endfor %}"
)


def _tokenizer():
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(len(SPECIAL), VOCABULARY))]
    rules = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=rules, **SPECIAL, chat_template=CHAT)


class Texts:
    """Random texts of a few lengths, the same ones on every rank."""

    def __init__(self, lengths, seed=0):
        self.draw, self.lengths = random.Random(seed), lengths

    def __call__(self):
        return " ".join(f"w{self.draw.randrange(3, VOCABULARY)}" for _ in range(self.draw.choice(self.lengths)))


def _tokens():
    return [{"input_ids": document["input_ids"]} for document in Documents(200)]


def _completions():
    prompt, completion = Texts((2, 7, 30)), Texts((1, 5, 60), seed=1)
    return [{"prompt": prompt(), "completion": " " + completion()} for _ in range(160)]


def _chats():
    asked, answered = Texts((2, 7, 30)), Texts((1, 5, 40), seed=1)

    def turn():
        return [{"role": "user", "content": asked()}, {"role": "assistant", "content": answered()}]

    return [{"messages": turn() if item % 2 else turn() + turn()} for item in range(160)]


def _preferences():
    prompt, answer = Texts((2, 7, 30)), Texts((2, 5, 40), seed=1)
    return [{"prompt": prompt(), "chosen": " " + answer(), "rejected": " " + answer()} for _ in range(80)]


DATA = {"tokens": _tokens, "completions": _completions, "chats": _chats}


@contextlib.contextmanager
def _shared_folder():
    """One folder for all ranks."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = [scratch]
        dist.broadcast_object_list(folder)
        yield folder[0]
        dist.barrier()


class Said(logging.Handler):
    """The warnings that HSAP logs meanwhile."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())

    @contextlib.contextmanager
    def listening(self):
        logger = logging.getLogger("hsap_hf")
        logger.addHandler(self)
        try:
            yield self
        finally:
            logger.removeHandler(self)


def _lora():
    return LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)


def _enable(group, model):
    return enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1], debug=True))


def _sft_trainer(model, folder, data="tokens", lora=False, given=None, **arguments):
    rows = DATA[data]()
    return SFTTrainer(
        model=model,
        args=SFTConfig(folder, **DEFAULTS | arguments),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:EVALUATED]),
        processing_class=_tokenizer(),
        peft_config=_lora() if lora else None,
        **given or {},
    )


def train(group, *, enabled="before", prepared=True, evaluated=True, **settings):
    """SFTTrainer once; `group` is (context_size, ulysses_size), or None for plain DDP with stock SDPA."""
    with _shared_folder() as folder, Said().listening() as said:
        model = small_llama()
        handle = _enable(group, model) if group and enabled == "before" else None
        trainer = _sft_trainer(model, folder, **settings)
        if group and enabled == "after":
            handle = _enable(group, trainer.model)
        if group and prepared:
            prepare_trainer(trainer)
        trainer.train()
        if evaluated:
            trainer.evaluate()
    return _results(trainer, handle, said)


def refused(group, *, given=None, **settings):
    """What prepare_trainer says to an SFTTrainer with these settings; `given` names functions of torch it is given."""
    model = small_llama()
    with _shared_folder() as folder, _enable(group, model):
        given = {name: getattr(torch, function) for name, function in (given or {}).items()}
        trainer = _sft_trainer(model, folder, given=given, **settings)
        try:
            prepare_trainer(trainer)
        except HsapError as error:
            return f"{type(error).__name__}: {error}"
    return None


def prefer(group, *, reference="given", enabled="before", **arguments):
    """DPOTrainer once; its reference is a model that is "given", or "loaded" by it from where the policy came from, the
    policy without its "adapter", or the untrained policy with log-probabilities "precomputed"."""
    with _shared_folder() as folder, Said().listening() as said:
        model = small_llama()
        model.save_pretrained(folder)  # rank 0 writes
        rows = Dataset.from_list(_preferences())
        if dist.get_rank() == 0:
            rows.save_to_disk(f"{folder}/rows")
        dist.barrier()
        if reference == "loaded":
            model = LlamaForCausalLM.from_pretrained(folder)
        rows = datasets.load_from_disk(f"{folder}/rows")  # TRL keeps what it precomputes beside the rows
        handle = _enable(group, model) if group and enabled == "before" else None
        precompute = {"precompute_ref_log_probs": True} if reference == "precomputed" else {}
        trainer = DPOTrainer(
            model=model,
            ref_model=small_llama(initializer_range=0.03) if reference == "given" else None,
            args=DPOConfig(folder, **DEFAULTS | precompute | arguments),
            train_dataset=rows,
            eval_dataset=rows.select(range(EVALUATED)),
            processing_class=_tokenizer(),
            peft_config=_lora() if reference == "adapter" else None,
        )
        if group and enabled == "after":
            handle = _enable(group, trainer.model)
        trainer.train()
        trainer.evaluate()
    return _results(trainer, handle, said)


def judge(group, **arguments):
    """KTOTrainer once, with a reference model of its own."""
    with _shared_folder() as folder, Said().listening() as said:
        model = small_llama()
        handle = _enable(group, model) if group else None
        prompt, answer = Texts((2, 7, 30)), Texts((2, 5, 40), seed=1)
        rows = [{"prompt": prompt(), "completion": " " + answer(), "label": item % 3 > 0} for item in range(80)]
        trainer = KTOTrainer(
            model=model,
            ref_model=small_llama(initializer_range=0.03),
            args=KTOConfig(folder, **DEFAULTS | arguments),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:EVALUATED]),
            processing_class=_tokenizer(),
        )
        trainer.train()
        trainer.evaluate()
    return _results(trainer, handle, said)


def _paid(completions, **kwargs):
    return [sum(map(ord, text)) % 17 / 17 for text in completions]


def reward(group, **arguments):
    """GRPOTrainer once: it generates, is paid, and trains on what it generated."""
    with _shared_folder() as folder, Said().listening() as said:
        model = small_llama()
        handle = _enable(group, model) if group else None
        prompt = Texts((2, 7, 30))
        rows = [{"prompt": prompt()} for _ in range(40)]
        settings = DEFAULTS | {"num_generations": 2, "max_completion_length": 12} | arguments
        del settings["max_length"]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=_paid,
            args=GRPOConfig(folder, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(),
        )
        trainer.train()
    return _results(trainer, handle, said)


def _results(trainer, handle, said):
    report = handle.report() if handle else {}
    if handle:
        handle.disable()
    timed = ("runtime", "per_second", "epoch", "step", "step_time")
    weights = {name: value.float().numpy() for name, value in trainer.model.state_dict().items()}
    return {
        "logs": [
            {name: value for name, value in entry.items() if not name.endswith(timed)}
            for entry in trainer.state.log_history
            if "train_runtime" not in entry
        ],
        "said": said.texts,
        "report": report,
        "weights": weights if dist.get_rank() == 0 else {},
    }


def apart(**settings):
    """The loss of a first batch of this rank by TRL with stock SDPA, with its documents alone, and without edges."""
    model = small_llama(initializer_range=0.2)  # attention matters more than in a fresh model
    with _shared_folder() as folder, torch.no_grad():
        trainer = _sft_trainer(model, folder, **settings)
        batch = next(iter(trainer.get_train_dataloader()))
        ids, labels = batch["input_ids"], batch["labels"]
        edges = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
        together = trainer.compute_loss(model, dict(batch)).item()
    lengths = torch.tensor([*edges, ids.shape[1]]).diff().tolist()
    rows = zip(ids[0].split(lengths), labels[0].split(lengths), strict=True)
    count = (labels[:, 1:] != -100).sum()
    with torch.no_grad():
        alone = sum(
            model(row[None], labels=wanted[None], num_items_in_batch=count, use_cache=False).loss.item()
            for row, wanted in rows
            if len(row) > 1
        )
        whole = model(ids, labels=labels, position_ids=torch.arange(ids.shape[1])[None], use_cache=False).loss.item()
    return {"together": together, "alone": alone, "without edges": whole, "documents": len(lengths)}
