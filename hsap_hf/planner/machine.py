"""Speeds of a machine, measured ones where there are any.

Kernel speeds are those of two H100s and an H200 (docs/performance.md; packs shared by two GPUs on NVLink take what
they say within 8 %), links those of two NVLink H100s: an all-to-all of 256 MiB moves 242 GB/s, a small one takes 55-120
us. Assumed: matrix products at 55 % of the 989 TFLOP/s peak, and networks at 50 and 25 GB/s a GPU. `hsap doctor
--calibrate` measures one device.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Speeds of one GPU, and of the links between GPUs."""

    name: str
    linear_flops: float
    """Matrix products, FLOP/s."""
    forward_flops: float
    """Attention forward on long documents, FLOP/s."""
    backward_flops: float
    """Attention backward on long documents, FLOP/s."""
    half_length: float
    """Document length, in tokens, at which attention runs at half speed."""
    node_ranks: int
    """GPUs of a node."""
    node_bytes: float
    """Bytes a second that a GPU receives from others of its node, and as many that it sends."""
    network_bytes: float
    """The same between nodes."""
    message_seconds: float
    """Time of an exchange that carries nothing."""
    memory_bytes: float
    """Memory of one GPU."""
    merge_bytes: float
    """Bytes a second at which partial results are prepared, merged and summed."""


H100 = Machine(
    name="h100",
    linear_flops=544e12,
    forward_flops=676e12,
    backward_flops=595e12,
    half_length=1_100,
    node_ranks=8,
    node_bytes=242e9,
    network_bytes=50e9,
    message_seconds=90e-6,
    memory_bytes=80e9,
    merge_bytes=2.4e12,
)
"""Nodes of 8 on NVLink, 50 GB/s a GPU between them, flash-attn 4."""
H100_SLOW = replace(H100, name="h100-25", network_bytes=25e9)
H100_FLASH2 = replace(H100, name="h100-flash2", forward_flops=351e12, backward_flops=325e12, half_length=740)
H200 = replace(H100, name="h200", memory_bytes=141e9)  # the cores of an H100, more memory
MACHINES = (H100, H100_SLOW, H100_FLASH2, H200)


def unknown(ulysses_size: int) -> Machine:
    """What a running job, which does not know its links, takes its machine for: NVLink as 4 multiprocessors serve it,
    though the exchange takes 8 and more, the slow link of docs/performance.md, and a small exchange with its launches.

    To compare times of ranks that share heads, whatever their number: all else is so many times shorter for one of
    them, so here a message's own time is longer instead.
    """
    message = 150e-6 * ulysses_size
    return replace(H100, name="unknown", node_bytes=87e9, network_bytes=23e9, message_seconds=message)
