"""Models that a user changed by hand, on one rank of the gloo pool."""

import logging
import warnings

import torch
import torch.distributed as dist
from forward_runs import Said, enabled, mean_gradients, packed, padded, supervised
from peft import AdaLoraConfig, LoraConfig, PromptTuningConfig, get_peft_model
from small import LLAMA, small_llama
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from hsap_hf import HsapPlugin, enable_hsap
from hsap_hf.errors import HsapError

LENGTHS = [[30, 2], [1, 1], [64], [9, 17, 3]]


def focal_loss(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **kwargs):
    """A loss of a user's own: a sum over tokens that honours shift_labels and num_items_in_batch."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=-100)[..., 1:]
    wanted = shift_labels.reshape(-1)
    losses = F.cross_entropy(logits.float().view(-1, vocab_size), wanted, reduction="none")
    count = (wanted != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return ((1 - (-losses).exp()) ** 2 * losses).sum() / count


def own_loss(group, kind):
    """Losses (HSAP, stock) of training, summed over the ranks, and of this rank's evaluation."""
    me = dist.get_rank()
    batch = packed(LENGTHS[me], me) if kind == "packed" else padded(LENGTHS[me], kind, me)
    model = small_llama().eval()
    model.loss_function = focal_loss
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    count = supervised(batch).clone()
    dist.all_reduce(count)

    def losses(inputs):
        total = model(**inputs, num_items_in_batch=count).loss.detach().clone()
        dist.all_reduce(total)
        with torch.no_grad():
            evaluated = model(**inputs, num_items_in_batch=count).loss
        return float(total), float(evaluated)

    with enabled(model, group):
        ours = losses(batch)
    return ours, losses({**call, "use_cache": False})


def loss_of_logits(group, kind):
    """Largest difference, relative to the largest entry, of gradients to which a term of the logits adds its own."""
    me = dist.get_rank()
    batch = packed(LENGTHS[me], me) if kind == "packed" else padded(LENGTHS[me], kind, me)
    model = small_llama()
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))

    def gradients(inputs):
        out = model(**inputs, num_items_in_batch=torch.tensor(100.0))
        return mean_gradients(model, out.loss + 1e-2 * (out.logits.logsumexp(-1) ** 2 * kept).sum())

    with enabled(model, group, return_logits="brought"):
        ours = gradients(batch)
    stock = gradients({**call, "use_cache": False})
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, stock, strict=True))


def refused(what):
    """The error of a change that HSAP does not follow."""
    me = dist.get_rank()
    batch = packed(LENGTHS[me], me)
    try:
        if what == "prompt":
            peft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
            enable_hsap(get_peft_model(small_llama(), peft), HsapPlugin(context_size=2))
        elif what == "router":
            sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
            config = MixtralConfig(vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2, **sizes)
            model = MixtralForCausalLM(config)
            with enable_hsap(model, HsapPlugin(context_size=2)):
                model.config.output_router_logits = True
                model(**batch)
        elif what == "alora":
            peft = LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[5], target_modules=["q_proj"])
            enable_hsap(get_peft_model(small_llama(), peft), HsapPlugin(context_size=2))
        elif what == "late loss":
            model = small_llama()
            with enable_hsap(model, HsapPlugin(context_size=2)):
                model.loss_function = focal_loss
                model(**batch)
        else:
            model = small_llama()
            model.get_input_embeddings().neftune_noise_alpha = 5.0
            with enable_hsap(model, HsapPlugin(context_size=2)):
                model(**batch)
    except HsapError as error:
        return str(error)


def loss_through_ddp():
    """Losses (enabled inside DDP, enabled bare), each summed over the ranks."""
    me, losses = dist.get_rank(), []
    for wrapped in (True, False):
        model = small_llama()
        outer = DistributedDataParallel(model) if wrapped else model
        with enabled(outer, (2, 1)):
            total = outer(**packed(LENGTHS[me], me)).loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total))
    return losses


def evaluations(wanted):
    """What was said in two evaluations."""
    me, said = dist.get_rank(), Said()
    logger = logging.getLogger("hsap_hf")
    logger.addHandler(said)
    model = small_llama()
    with enabled(model, (2, 1), return_logits=wanted), torch.no_grad():
        for _ in range(2):
            model(**packed(LENGTHS[me], me))
    logger.removeHandler(said)
    return said.texts


def loss_that_reads_logits(wanted):
    """What is said of an error that ends a rank in a loss of its own, and of another None elsewhere."""
    said, model, nothing = Said(), small_llama(), None
    logger = logging.getLogger("hsap_hf")
    with enabled(model, (2, 1), return_logits=wanted) as handle:
        logits = model(**packed(LENGTHS[dist.get_rank()], dist.get_rank())).logits
        logger.addHandler(said)
        for reads_logits in (True, False):
            try:
                if reads_logits:
                    logits.float().mean()
                else:
                    nothing.float()
            except (AttributeError, TypeError) as error:
                error.hsap_agreed = True  # all ranks have it: none tells the others
                handle.announce(error)
        logger.removeHandler(said)
    return said.texts


def parts_called(family):
    """Largest difference from the stock model's hidden states where the decoder is called by itself, packed and padded,
    before a batch was dealt and after; then logits of another model that was built from the enabled one's config."""
    me = dist.get_rank()
    torch.manual_seed(0)
    window = {"sliding_window": 4} if family == "window" else {}
    model = MistralForCausalLM(MistralConfig(**LLAMA, **window)).eval()
    calls = [packed(LENGTHS[me], me), padded(LENGTHS[me], "left", me), {"input_ids": packed([40], me)["input_ids"]}]
    calls = [{**call, "use_cache": False} for call in calls]
    for call in calls:
        call.pop("labels", None)
    found = []
    with torch.no_grad():
        stock = [model.model(**call).last_hidden_state for call in calls]
        with enable_hsap(model, HsapPlugin(context_size=2)) as handle:
            for _ in range(2):
                ours = [model.model(**call).last_hidden_state for call in calls]
                found += [float((a - b).abs().max()) for a, b in zip(ours, stock, strict=True)]
                model(**packed(LENGTHS[me], me))
            twin = type(model)(model.config).eval()
            twin.load_state_dict(model.state_dict())
            found.append(float((twin.model(**calls[0]).last_hidden_state - stock[0]).abs().max()))
            return found, handle.report()["batches"]


def past_the_hooks():
    """AdaLoRA calls the model's forward itself: losses with HSAP and stock, batches dealt, and what was warned."""
    adapter = {"init_r": 4, "target_r": 2, "tinit": 0, "tfinal": 0, "total_step": 10}
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **adapter)
    model = get_peft_model(small_llama(), config)
    batch = packed([30, 2, 9], dist.get_rank())
    stock = model(**batch, use_cache=False).loss.item()
    with enable_hsap(model, HsapPlugin(context_size=2)) as handle, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = model(**batch, use_cache=False).loss
        ours.backward()
        return ours.item(), stock, handle.report()["batches"], {str(warning.message) for warning in said}
