"""A whole job in this process: every rank's HsapMesh over loopback axes."""

from hsap_hf.comm import HsapMesh
from hsap_hf.comm.loopback import loopback_grid, run_ranks
from hsap_hf.errors import HsapError


def loopback_meshes(context_size: int, ulysses_size: int = 1, num_replicas: int = 1) -> list[HsapMesh]:
    """One mesh a rank, in rank order; ulysses ranks innermost, replicas outermost."""
    size = context_size * ulysses_size
    world = [axes[0] for axes in loopback_grid(size * num_replicas, 1)]
    meshes = []
    for replica in range(num_replicas):
        devices, hosts = loopback_grid(context_size, ulysses_size), loopback_grid(size, 1)
        for rank, (group, context, ulysses) in enumerate(devices):
            everyone = world[replica * size + rank]
            meshes.append(HsapMesh(context, ulysses, group, hosts[rank][0], everyone, replica, num_replicas))
    return meshes


def outcomes(meshes: list[HsapMesh], body) -> list:
    """`body(mesh)` on every rank at once; an HsapError is a result."""

    def run(rank: int):
        try:
            return body(meshes[rank])
        except HsapError as error:
            return error

    return run_ranks(len(meshes), run)
