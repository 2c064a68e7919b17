"""Predicted time of one transformer layer, forward and backward, from tokens, query-key pairs and keys that travel.

A kernel speed of peak / (1 + h / l) on a document of length l fits what was measured on long and on short documents;
since pairs * h / l is h / 2 a row, the loss on short documents is a cost per token: equal tokens and equal pairs are
equal predicted times, to this order.
"""

from collections.abc import Sequence

from hsap_hf.planner.load import Load
from hsap_hf.planner.machine import Machine, unknown
from hsap_hf.planner.messages import COUNTS, wait
from hsap_hf.planner.model import LLAMA3_8B, Model

MERGED_BYTES = 24
"""Moved for an element of a query row in one part more, forward and backward: 41 ns a row of 32 heads of 128 wide."""
WORTH = 1.02
"""What more messages than one must be predicted to save of attention. Two lost a point on four GPUs over a slow link
where 1.016 is predicted, and won one to eight where it is 1.02 to 1.11."""
ULYSSES_MESSAGES = 6
"""All-to-alls a layer: queries, keys with values, and outputs forward; the gradients of the three backward."""


def linear_seconds(tokens: float, model: Model, machine: Machine) -> float:
    """Linear maps of one layer: 2 FLOP a weight and token forward, 4 backward."""
    return 6 * model.layer_weights * tokens / machine.linear_flops


def attention_seconds(tokens: float, work: float, model: Model, machine: Machine) -> float:
    """Attention of one layer: 4 FLOP a pair, head and element forward, 10 backward."""
    flops = model.num_query_heads * model.head_dim * (work + tokens * machine.half_length / 2)
    return flops * (4 / machine.forward_flops + 10 / machine.backward_flops)


def key_bytes(model: Model, ulysses_size: int = 1) -> int:
    """Bytes of one token's keys and values in one layer, as one rank sends them: bfloat16, forward.

    Their gradients take as many on the way back; owners sum them in float32.
    """
    return 4 * model.kv_heads_per_rank(ulysses_size) * model.head_dim


def exchange_seconds(near: float, far: float, model: Model, machine: Machine, ulysses_size: int = 1) -> float:
    """Exchange of one layer, forward and backward, of one rank.

    near, far: keys from slots of the same node and of others; fetched or sent, whichever are more, since links carry
    both ways at once. The two kinds of link work side by side.
    """
    if not near and not far:
        return 0.0
    size = 2 * key_bytes(model, ulysses_size)
    return 2 * machine.message_seconds + size * max(near / machine.node_bytes, far / machine.network_bytes)


def waiting_seconds(
    attention: float, own_share: float, exchange: float, machine: Machine, num_messages: int = 1
) -> float:
    """Attention and exchange of one layer of one slot, forward and backward.

    own_share: of the attention, needs no keys of others. exchange: see exchange_seconds.
    """
    forward, backward = 4 / machine.forward_flops, 10 / machine.backward_flops
    shares = [attention * direction / (forward + backward) for direction in (forward, backward)]
    message = min(machine.message_seconds, exchange / 2)
    waits = [wait(own_share * share, (1 - own_share) * share, exchange / 2, message, num_messages) for share in shares]
    return attention + sum(waits)


def merging_seconds(tokens: float, model: Model, machine: Machine) -> float:
    """One layer's cost of a message more, whose keys `tokens` rows meet in a call of its own."""
    return MERGED_BYTES * model.num_query_heads * model.head_dim * tokens / machine.merge_bytes


def ulysses_bytes(slot_tokens: float, ulysses_size: int, model: Model) -> float:
    """Bytes that one rank receives in a layer's forward to trade heads for the tokens of its slot, and back."""
    heads = 2 * model.num_query_heads + 2 * ulysses_size * model.kv_heads_per_rank(ulysses_size)
    return 2 * slot_tokens / ulysses_size * model.head_dim * heads * (ulysses_size - 1) / ulysses_size


def ulysses_seconds(slot_tokens: float, ulysses_size: int, model: Model, machine: Machine) -> float:
    """All-to-alls of one layer, forward and backward. Nothing runs beside them."""
    if ulysses_size == 1:
        return 0.0
    link = machine.node_bytes if ulysses_size <= machine.node_ranks else machine.network_bytes
    return ULYSSES_MESSAGES * machine.message_seconds + 2 * ulysses_bytes(slot_tokens, ulysses_size, model) / link


def attention_slot_seconds(
    load: Load, model: Model, machine: Machine, ulysses_size: int = 1, num_messages: int = 1
) -> list[float]:
    """Every slot's time for one layer's attention and what it waits for keys."""
    near, far = load.traffic.near_most(), load.traffic.far_most()
    # which rows ask for keys of others a load does not tell; all, where there are any such keys
    asked = [tokens if keys else 0 for tokens, keys in zip(load.tokens, load.traffic.fetched, strict=True)]
    return [
        merging_seconds((num_messages - 1) * asking / ulysses_size, model, machine)
        + waiting_seconds(
            attention_seconds(tokens, work, model, machine) / ulysses_size,
            own / max(work, 1),
            exchange_seconds(near[slot], far[slot], model, machine, ulysses_size),
            machine,
            num_messages,
        )
        for slot, (tokens, asking, work, own) in enumerate(zip(load.tokens, asked, load.work, load.own, strict=True))
    ]


def slot_seconds(
    load: Load, model: Model, machine: Machine, ulysses_size: int = 1, num_messages: int = 1
) -> list[float]:
    """Every slot's time for one layer."""
    attention = attention_slot_seconds(load, model, machine, ulysses_size, num_messages)
    return [
        linear_seconds(tokens / ulysses_size, model, machine)
        + ulysses_seconds(tokens, ulysses_size, model, machine)
        + seconds
        for tokens, seconds in zip(load.tokens, attention, strict=True)
    ]


def layer_seconds(load: Load, model: Model, machine: Machine, ulysses_size: int = 1) -> float:
    """The slowest slot's time for one layer, with as many messages an exchange as the engine takes."""
    count = best_num_messages(load, ulysses_size)
    return max(slot_seconds(load, model, machine, ulysses_size, count))


def best_num_messages(load: Load, ulysses_size: int = 1) -> int:
    """Of an exchange, with which the slowest slot is fastest, if that is worth more than one. The same on all slots.

    For a job that does not know its machine, and 32 query and 8 key-value heads of 128. 1 where all keys stay in their
    node: there two were slower on four GPUs, and on eight nobody measured them.
    """
    if not any(load.traffic.far_fetched):
        return 1
    machine = unknown(ulysses_size)
    slowest = {count: max(attention_slot_seconds(load, LLAMA3_8B, machine, num_messages=count)) for count in COUNTS}
    best = min(COUNTS, key=slowest.__getitem__)
    return best if slowest[best] * WORTH < slowest[1] else 1


def ideal_seconds(tokens: Sequence[int], work: Sequence[int], model: Model, machine: Machine) -> float:
    """What a slot would need if work and tokens were equal and exchange free."""
    slots = len(tokens)
    rows, pairs = sum(tokens) / slots, sum(work) / slots
    return linear_seconds(rows, model, machine) + attention_seconds(rows, pairs, model, machine)


def step_seconds(load: Load, model: Model, machine: Machine, ulysses_size: int = 1) -> float:
    """Forward, activation checkpointing's second forward, backward and the output layer of one pack.

    Gradient reduction and the optimizer are left out. The second forward is counted as a third of a layer: so it is for
    linear maps, for attention it is 4/14, for what travels a half.
    """
    rows = max(load.tokens) / ulysses_size
    head = 6 * model.hidden_size * model.vocab_size * rows / machine.linear_flops
    return model.num_layers * 4 / 3 * layer_seconds(load, model, machine, ulysses_size) + head


def memory_bytes(load: Load, model: Model, num_ranks: int, ulysses_size: int = 1) -> float:
    """Memory of the fullest rank: FSDP2 over `num_ranks`, Adam in float32, activation checkpointing, logits whole.

    16 bytes a weight are sharded (master, gradient, two moments), two layers are gathered in bfloat16; a token keeps
    its hidden state per layer, one layer's inner values in bfloat16, and 10 bytes a logit (bfloat16, float32 and a
    gradient); borrowed keys come on top.
    """
    rows = max(load.tokens) / ulysses_size
    heads = (2 * model.num_query_heads + 4 * model.num_kv_heads) * model.head_dim
    inner = 2 * (6 * model.hidden_size + 2 * heads + 4 * model.intermediate_size)
    token = 2 * model.hidden_size * model.num_layers + inner + 10 * model.vocab_size
    borrowed = 3 * max(load.traffic.fetched) * key_bytes(model, ulysses_size)  # twice in the exchange, once gathered
    return 16 * model.weights / num_ranks + 4 * model.layer_weights + rows * token + borrowed
