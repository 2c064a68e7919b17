"""One job on two hosts, played by two torchrun agents: Ulysses stays inside a host, and documents that fit do too."""

import json
from pathlib import Path

from launched import PYTHON, free_port, launch_together

SCRIPT = Path(__file__).with_name("two_hosts_script.py")


def on_two_hosts(folder, context_size, ulysses_size):
    """What each of four ranks told, two of them on each host."""
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 2]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    agents = [[*torchrun, "--node-rank", host, SCRIPT, context_size, ulysses_size, folder] for host in range(2)]
    ended = launch_together(*agents)
    for agent in ended:
        assert agent.code == 0, agent.err[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]


def test_ulysses_ranks_share_a_host(tmp_path):
    told = on_two_hosts(tmp_path, 2, 2)
    assert [rank["ulysses"] for rank in told] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert {(rank["slots_per_node"], rank["near_slots"]) for rank in told} == {(1, 1)}


def test_documents_that_fit_a_host_stay_there(tmp_path):
    told = on_two_hosts(tmp_path, 4, 1)
    assert {(rank["slots_per_node"], rank["near_slots"]) for rank in told} == {(2, 2)}
    assert all(rank["received"] == rank["planned"] for rank in told)
    hosts = {tuple({slot // 2 for slot in slots}) for length, slots in told[0]["owners"] if length == 180}
    assert hosts == {(0,), (1,)}  # each of the long documents is cut, within its own host
    across = sum(len({slot // 2 for slot in slots}) > 1 for _, slots in told[0]["owners"])
    assert across <= 2  # of the short ones, that even out tokens and work between two hosts
    within, between = 0, 0
    for rank in told:
        for sender, rows in rank["received"].items():
            if int(sender) // 2 == rank["slot"] // 2:
                within += rows
            else:
                between += rows
    assert between < within / 5
