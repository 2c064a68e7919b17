"""Direct forward calls on one rank of the gloo pool, with HSAP and stock, on batches that differ between ranks."""

import logging
import time
from collections import Counter
from contextlib import contextmanager

import torch
import torch.distributed as dist
from small import VOCABULARY, small_llama

from hsap_hf import HsapDataCollator, HsapPlugin, enable_hsap
from hsap_hf.comm.axis import ProcessAxis
from hsap_hf.errors import HsapError

CASES = {  # documents that each of four ranks brings
    "ragged": [[40, 3], [1, 1, 1, 1], [90], [7, 20, 5, 64]],
    "one rank brings nothing": [[40, 3], [], [90, 2], [1]],
    "only one rank brings something": [[], [], [70, 1], []],
    "one long document": [[], [900], [], [30]],
    "fewer tokens than ranks": [[2], [1], [], []],
    "nobody brings anything": [[], [], [], []],
}


def random_rows(lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=draw) for length in lengths]


def packed(lengths, seed=0, supervised=True):
    """One packed row of random documents."""
    batch = HsapDataCollator()([{"input_ids": row} for row in random_rows(lengths, seed)])
    if not supervised:
        batch["labels"].fill_(-100)
    return batch


def padded(lengths, side, seed=0):
    """A padded batch; padding stands left or right.

    First labels are masked: left of them the stock model would let a padding token predict the first token.
    """
    width, rows = max(lengths), random_rows(lengths, seed)
    sides = [((0, width - n), (width - n, 0))[side == "left"] for n in lengths]
    ids, mask = (
        torch.stack([torch.nn.functional.pad(row, pad) for row, pad in zip(of_rows, sides, strict=True)])
        for of_rows in (rows, [torch.ones_like(row) for row in rows])
    )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    labels = ids.masked_fill(positions == 0, -100).masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "position_ids": positions}


def enabled(model, group, **options):
    return enable_hsap(model, HsapPlugin(context_size=group[0], ulysses_size=group[1], debug=True, **options))


def supervised(batch):
    return (batch["labels"][:, 1:] != -100).sum()


def stock_loss(model, batch, denominator):
    """The stock model on what this rank brought; an empty row, which it cannot compute, has loss 0."""
    if not batch["input_ids"].numel():
        return sum(parameter.sum() for parameter in model.parameters()) * 0.0
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    return model(**call, num_items_in_batch=torch.tensor(1.0), use_cache=False).loss / denominator


def mean_gradients(model, loss):
    """What DDP makes of it: the mean over ranks."""
    model.zero_grad()
    loss.backward()
    grads = [parameter.grad.clone(memory_format=torch.contiguous_format) for parameter in model.parameters()]
    for grad in grads:
        dist.all_reduce(grad)
    return [grad / dist.get_world_size() for grad in grads]


def mean_over_ranks(loss):
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total / dist.get_world_size())


@contextmanager
def counted_messages():
    """How often a collective of each purpose is posted meanwhile."""
    posted, stock = Counter(), ProcessAxis.all_to_all

    def counted(self, send, send_rows, receive_rows, purpose, into=None):
        posted[purpose] += 1
        return stock(self, send, send_rows, receive_rows, purpose, into)

    ProcessAxis.all_to_all = counted
    try:
        yield posted
    finally:
        ProcessAxis.all_to_all = stock


class Said(logging.Handler):
    """What the package logs."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def step(
    group,
    case,
    supervised_ranks=(0, 1, 2, 3),
    with_num_items=True,
    checkpointing=None,
    twice=False,
    kv_heads=2,
    borrowed_keys="auto",
    exchange_messages="auto",
):
    """One step with HSAP and one without: both losses, and the largest difference of any gradient."""
    me, size = dist.get_rank(), group[0] * group[1]
    batch = packed(CASES[case][me], seed=me, supervised=me in supervised_ranks)
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(4)]
    dist.all_gather(counts, supervised(batch))
    replica = range(me // size * size, me // size * size + size)
    if with_num_items:
        denominator = max(1, int(sum(counts)))
        options = {"num_items_in_batch": sum(counts)}
    else:  # the token mean over the group, as the mean of its ranks
        denominator = max(1, int(sum(counts[rank] for rank in replica))) / size
        options = {}
    model = small_llama(num_key_value_heads=kv_heads).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        if checkpointing:
            model.enable_input_require_grads()
    loss = stock_loss(model, batch, denominator)
    if twice:
        loss = loss + 2 * stock_loss(model, packed([5 + me, 60 * (me == 1) + 1], seed=9), 7.0)
    stock = mean_gradients(model, loss)
    said = Said()
    logging.getLogger("hsap_hf").addHandler(said)
    settings = {"borrowed_keys": borrowed_keys, "exchange_messages": exchange_messages}
    with counted_messages() as posted, enabled(model, group, **settings) as handle:
        ours = model(**batch, **options).loss
        if twice:  # two plans in flight: as DPO does it, or a reference model, or interleaved micro-batches
            ours = ours + 2 * model(**packed([5 + me, 60 * (me == 1) + 1], seed=9), num_items_in_batch=7.0).loss
        grads = mean_gradients(model, ours)
        cut = len(handle.plan.cut_documents)
        received_rows = handle.report()["received_rows"]
    logging.getLogger("hsap_hf").removeHandler(said)
    return {
        "received_rows": received_rows,
        "said": said.texts,
        "messages": posted["exchange keys and values"],
        "loss": mean_over_ranks(ours),
        "stock_loss": mean_over_ranks(loss),
        "gradient_difference": max(float((a - b).abs().max()) for a, b in zip(grads, stock, strict=True)),
        "largest_gradient": max(float(grad.abs().max()) for grad in stock),
        "finite": all(bool(grad.isfinite().all()) for grad in grads),
        "cut": cut,
    }


def logits(group, kind, wanted):
    """Largest difference of the logits a forward with labels returns from the stock ones on the brought batch."""
    me = dist.get_rank()
    lengths = [[30, 2], [1, 1], [64], [9, 17, 3]][me]
    batch = packed(lengths, me) if kind == "packed" else padded(lengths, kind, me)
    model = small_llama().eval()
    call = {name: value for name, value in batch.items() if name != "cu_seqlens"}
    divisor = 10.0 if kind == "packed" else 0.5  # whatever a caller divides by
    with torch.no_grad():
        stock = model(**call, use_cache=False, num_items_in_batch=divisor)
        with enabled(model, group, return_logits=wanted):
            ours = model(**batch, num_items_in_batch=divisor)
    if wanted != "brought":
        return None if ours.logits is None else list(ours.logits.shape)
    kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return {
        "difference": float((ours.logits - stock.logits)[kept].abs().max()),
        "at_padding": float(ours.logits[~kept].abs().max()) if (~kept).any() else 0.0,
        "same_shape": ours.logits.shape == stock.logits.shape,
        "loss": float((ours.loss - stock.loss) / stock.loss.clamp(min=1)),
    }


def inference(group):
    """Whether calls without labels give the same bits with HSAP as without, before and after a dealt forward."""
    model, me = small_llama().eval(), dist.get_rank()
    batch = padded([6, 2 + me, 4], "left", seed=me)
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    draw = {"do_sample": True, "num_beams": 1, "max_new_tokens": 6, "pad_token_id": 0}

    def calls():
        torch.manual_seed(3)
        sampled = model.generate(**prompt, **draw, output_logits=True, return_dict_in_generate=True)
        beams = model.generate(**prompt, num_beams=2, do_sample=False, max_new_tokens=5, pad_token_id=0)
        plain, cached = model(**prompt), model(**prompt, use_cache=True)
        step = model(input_ids=prompt["input_ids"][:, :1], past_key_values=cached.past_key_values)
        return [sampled.sequences, *sampled.logits, beams, plain.logits, cached.logits, step.logits]

    with torch.no_grad():
        stock = calls()
        with enabled(model, group):
            results = [calls()]
            model(**packed([20, 3], me))
            results.append(calls())
            model.train()
        model.eval()
        results.append(calls())
    return [all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True)) for ours in results]


def failing(group, batches, options=None, grad_ranks=(0, 1, 2, 3)):
    """The error that rank r raises on batches[r % 4], by class and text; the group then trains on."""
    me = dist.get_rank()
    batch = {"packed": packed([9, 4], me), **bad_batches(me)}[batches[me]]
    model = small_llama()
    with enabled(model, group, **(options or {})):
        try:
            with torch.set_grad_enabled(me in grad_ranks):
                model(**batch)
        except HsapError as error:
            return type(error).__name__, str(error)
    return None


def bad_batches(seed):
    hole = padded([5, 3], "right", seed)
    hole["attention_mask"][0, 2] = 0
    square = {**packed([4, 4], seed), "attention_mask": torch.ones(1, 1, 8, 8)}
    return {"hole": hole, "4-D": square, "embeds": {"inputs_embeds": torch.ones(1, 4, 32), "labels": torch.ones(1, 4)}}


def mesh_layout(group):
    """Which ranks of the world share this rank's ulysses, context and group axis."""
    with enabled(small_llama(), group) as handle:
        axes = [getattr(handle.mesh, name) for name in ("ulysses", "context", "group", "group_host", "world_host")]
        mine = torch.tensor([dist.get_rank()])
        return [axis.all_gather(mine, "who is here").flatten().tolist() for axis in axes] + [handle.mesh.replica]


def steps_in_a_row(group, late):
    """Losses and gradients of this rank after each of many steps that nothing but their exchanges keeps together.

    late: the rank that sleeps at every layer, forward and backward; None: nobody.
    """
    me = dist.get_rank()
    model = small_llama().train()

    def dawdle(*_):
        if me == late:
            time.sleep(0.01)

    for layer in model.model.layers:
        layer.register_forward_pre_hook(dawdle)
        layer.register_full_backward_hook(dawdle)
    results = []
    with enabled(model, group, exchange_messages=2):
        for number, brought in enumerate([*CASES.values()] * 2):
            model.zero_grad()
            loss = model(**packed(brought[me], seed=4 * number + me)).loss
            loss.backward()
            results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    return [[tensor.numpy() for tensor in result] for result in results]
