"""Everything that moves between ranks: the only package that knows torch.distributed."""

from hsap_hf.comm.agree import Gathered, announce, confirm, gather_batches
from hsap_hf.comm.axis import Axis, Traffic
from hsap_hf.comm.deal import Deal, compile_deal, rank_rows
from hsap_hf.comm.mesh import HsapMesh, build_mesh, device_type_of, take_own_gpu, world_size
from hsap_hf.comm.store import join, last_words
from hsap_hf.comm.ulysses import share_heads

__all__ = [
    "Axis",
    "Deal",
    "Gathered",
    "HsapMesh",
    "Traffic",
    "announce",
    "build_mesh",
    "compile_deal",
    "confirm",
    "device_type_of",
    "gather_batches",
    "join",
    "last_words",
    "rank_rows",
    "share_heads",
    "take_own_gpu",
    "world_size",
]
