"""What torch.compile compiles of an enabled model whose batches differ in length."""

import pytest
import torch
from small import small_llama

from hsap_hf import HsapDataCollator, HsapPlugin
from hsap_hf.comm.loopback import lone_mesh
from hsap_hf.hf import HsapHandle

LAYERS = 4
LINEARS = 7 * LAYERS + 1  # of a forward, the output layer among them


@pytest.fixture
def linears():
    """A backend that runs graphs as they are and counts the linear layers in them."""
    torch._dynamo.reset()

    def backend(graph, inputs):
        inside = sum(node.target is torch._C._nn.linear for node in graph.graph.nodes)

        def run(*arguments):
            backend.count += inside
            return graph(*arguments)

        return run

    backend.count = 0
    yield backend
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's own tracing
def test_all_layers_stay_compiled_when_lengths_change(linears):
    model = small_llama(num_hidden_layers=LAYERS).train()
    limit = torch._dynamo.config.recompile_limit
    handle = HsapHandle(model, HsapPlugin(context_size=1), lone_mesh())
    compiled = torch.compile(model, backend=linears)
    for step in range(4):
        rows = [{"input_ids": [3] * length} for length in (40 + step, 60, 20 + 3 * step)]
        linears.count = 0
        compiled(**HsapDataCollator()(rows)).loss.backward()
    assert linears.count == LINEARS
    handle.disable()
    assert torch._dynamo.config.recompile_limit == limit
