"""One job on two hosts, played by two torchrun agents: Ulysses stays inside a host, and documents that fit do too."""

import json
from pathlib import Path

import pytest
from launched import PYTHON, free_port, launch_together

SCRIPT = Path(__file__).with_name("two_hosts_script.py")


@pytest.fixture(scope="module")
def on_two_hosts(tmp_path_factory):
    """What each of four ranks told, two of them on each host, by group."""
    folder, groups = tmp_path_factory.mktemp("told"), ("2x2", "4x1")
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 2]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    agents = [[*torchrun, "--node-rank", host, SCRIPT, folder, *groups] for host in range(2)]
    ended = launch_together(*agents)
    for agent in ended:
        assert agent.code == 0, agent.err[-3000:]
    return {
        group: [json.loads((folder / f"{group}-rank{rank}.json").read_text()) for rank in range(4)] for group in groups
    }


def test_ulysses_ranks_share_a_host(on_two_hosts):
    told = on_two_hosts["2x2"]
    assert [rank["ulysses"] for rank in told] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert {(rank["slots_per_node"], rank["near_slots"]) for rank in told} == {(1, 1)}


def test_documents_that_fit_a_host_stay_there(on_two_hosts):
    told = on_two_hosts["4x1"]
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
